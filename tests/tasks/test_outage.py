"""A server goes away in the middle of a night and comes back: no step waits for MLflow, nothing is lost, no run fails for Prefect."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from spark_jobs.manifests import Documents
from spark_jobs.specs import CleanSpec
from tasks.engine import StepResult
from tasks.prefect_runner import run_as_task
from tasks.steps import Step
from tasks.tracking import Tracking
from tasks.tracking_observer import TrackingObserver
from tasks.workspace import Workspace

NIGHT = "2026-11-25"
OUTAGE_S = 3.0  # two minutes in life; the pause between two deliveries is shortened alike


class Relay:
    """A port that passes bytes on to a server; while it is down, open connections are cut and new ones refused."""

    def __init__(self, target: int) -> None:
        self.target, self.is_down = target, False
        self.refused = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def go_down(self, seconds: float) -> None:
        self.is_down = True
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        threading.Timer(seconds, self._come_back).start()

    def _come_back(self) -> None:
        self.is_down = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_down:
                self.refused += 1
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # stopped for good: the tests are over
                client.close()
                return
            self._open += [client, server]
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    for end in (one, other):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(servers_home: Any, request: pytest.FixtureRequest) -> Iterator[Relay]:
    """In front of the server that the test names."""
    _, servers = servers_home
    relay = Relay({"mlflow": servers.mlflow_port, "prefect": servers.prefect_port}[request.param])
    yield relay
    relay.close()


@pytest.mark.parametrize("relay", ["mlflow"], indirect=True)
def test_tracking_server_down_for_a_while_costs_no_step_a_second_and_loses_nothing(
    relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.tracking.RETRY_S", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    workspace = Workspace(tmp_path / "outage")
    tracking = Tracking(f"http://127.0.0.1:{relay.port}", workspace, tmp_path / "artifacts")
    observer = TrackingObserver(tracking, NIGHT)
    assert tracking.wait(60)
    relay.go_down(OUTAGE_S)
    began = time.monotonic()
    for step in range(20):
        observer.send({"do": "metrics", "key": NIGHT, "values": {"loss": 20.0 - step}, "step": step})
    assert time.monotonic() - began < 0.5  # training tells, and goes on
    time.sleep(OUTAGE_S)
    assert relay.refused, "nobody tried"
    observer.close()
    client = MlflowClient(f"http://127.0.0.1:{relay.target}")
    (run,) = client.search_runs([client.get_experiment_by_name("outage").experiment_id])
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "loss")] == [
        20.0 - s for s in range(20)
    ]
    assert run.info.status == "FINISHED"
    assert run.data.tags["nightmill.telemetry_gap"] == "delivered late"
    assert not (workspace.root / "telemetry.jsonl").exists()


@pytest.mark.parametrize("relay", ["prefect"], indirect=True)
def test_prefect_down_for_a_while_delays_the_next_step_and_fails_nothing(relay: Relay, servers_home: Any) -> None:
    _, servers = servers_home
    worked = []

    def body(name: str) -> StepResult:
        worked.append(name)
        if name == "first":
            relay.go_down(OUTAGE_S)
        return StepResult(step=name, state="ran", why="first run")

    @flow
    def two_steps() -> list[str]:
        return [run_as_task(step_named(name), lambda name=name: body(name)).step for name in ("first", "second")]

    address = f"http://127.0.0.1:{relay.port}/api"
    with temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: servers.auth}):
        state = two_steps(return_state=True)
    assert state.is_completed(), state
    assert relay.refused, "nobody tried"
    assert worked == ["first", "second"]
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).state_name == "Completed"


def step_named(name: str) -> Step[Any]:
    return Step(name=name, handle=Documents, entry="spark_jobs.specs", spec=CleanSpec(), night=NIGHT)
