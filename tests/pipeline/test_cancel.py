"""A run on the pools, cancelled as the UI does it: soon nothing of it is left, and both servers say how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Cancelling

from flows.deploy import apply_file, prefect_file
from flows.specs import load_spec
from tasks.child import OWNER, marked

FIXTURES = Path(__file__).parent.parent / "fixtures"
NIGHT = "2026-11-25"
GONE_S = 20.0
BEGUN_S = 240.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def until(condition: Callable[[], Any], seconds: float, what: str) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if condition():
            return time.monotonic() - began
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


def started_by_runs(home: Path) -> list[psutil.Process]:
    """Processes of steps under this home: Spark drivers, JVMs, processes that fork ranks, ranks."""
    return marked(OWNER, lambda value: value.endswith(f":{home}"))


def listening(processes: list[psutil.Process]) -> list[int]:
    return [c.laddr.port for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]


def test_cancelled_run_leaves_no_jvm_port_or_lock_and_both_servers_say_so(servers_home, write_topics, tmp_path):
    home, servers = servers_home
    apply_file(prefect_file(), servers.api_url, servers.auth)
    texts = write_topics(tmp_path / "texts")
    spec = load_spec(str(FIXTURES / "tiny.yaml"), ["name=cancelled", f"ingest.sources.0.path={texts}"])
    locks = home / "workspaces" / "cancelled" / "locks"
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        deployment = client.read_deployment_by_name("prepare-corpus/prepare-corpus")
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters={"spec": spec.model_dump(mode="json"), "night": NIGHT}
        )
        until(
            lambda: any("java" in p.name() for p in started_by_runs(home)) and [*locks.glob("*.json")], BEGUN_S, "a JVM"
        )
        until(lambda: listening(started_by_runs(home)), BEGUN_S, "a port on which Spark listens")
        family = started_by_runs(home)
        ports = listening(family)
        client.set_flow_run_state(run.id, Cancelling())
        until(lambda: not started_by_runs(home), GONE_S, f"end of {[p.name() for p in family]}")
        until(lambda: client.read_flow_run(run.id).state_type.value == "CANCELLED", GONE_S, "state CANCELLED")
    assert not {
        port for port in ports if port in {c.laddr.port for c in psutil.net_connections("inet") if c.status == "LISTEN"}
    }
    assert list(locks.glob("*")) == []
    mlflow = MlflowClient(servers.mlflow_url)
    until(lambda: statuses(mlflow) and "RUNNING" not in statuses(mlflow), GONE_S, "terminal MLflow runs")
    assert "KILLED" in statuses(mlflow)


def statuses(client: MlflowClient) -> set[str]:
    experiment = client.get_experiment_by_name("cancelled")
    return {run.info.status for run in client.search_runs([experiment.experiment_id])} if experiment else set()
