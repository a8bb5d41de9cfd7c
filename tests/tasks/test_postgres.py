"""Prefect and MLflow on one real Postgres: eight writers at once, migrations once, passwords nowhere."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.postgres import Postgres, postgres, programs
from spark_jobs.errors import RequestError
from tasks.daemons import start_all, stop_all
from tasks.server_databases import database_url, outside_database, prepare_database
from tasks.servers import Servers, client_environment, servers_folder, tracking_uri

pytestmark = pytest.mark.skipif(programs() is None, reason="no Postgres on this machine: apt-get install postgresql")

WRITERS, METRICS, RUNS = 8, 100, 10


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        for name in ("prefect", "mlflow"):
            server.create_database(name)
        yield server


@pytest.fixture(scope="module")
def told(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose databases are on Postgres; MLflow's address comes from a file, as a secret does."""
    home = tmp_path_factory.mktemp("postgres-home")
    secret = tmp_path_factory.mktemp("secrets") / "mlflow"
    secret.write_text(database.url("mlflow") + "\n")
    before = dict(os.environ)
    os.environ["NIGHTMILL_PREFECT_DATABASE"] = database.url("prefect")
    os.environ["NIGHTMILL_MLFLOW_DATABASE_FILE"] = str(secret)
    yield home
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def up(told: Path) -> Iterator[Servers]:
    pytest.importorskip("psycopg", reason="pip install 'nightmill[server]'")
    try:
        yield start_all(told, free_port(), free_port())
    finally:
        stop_all(told)


def write_metrics(number: int, home: str, uri: str, answers: multiprocessing.Queue[str]) -> None:
    """One of eight processes: makes the tables if nobody has, and writes a run."""
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        prepare_database("mlflow", servers_folder(Path(home)))
        client = MlflowClient(uri)
        run = client.create_run("0", run_name=f"writer {number}")
        for step in range(METRICS):
            client.log_batch(run.info.run_id, metrics=[Metric("loss", float(number), step, step)])
        client.set_terminated(run.info.run_id)
        answers.put("")
    except BaseException as error:  # noqa: BLE001  the process boundary
        answers.put(f"{type(error).__name__}: {error}")


def write_at_once(home: Path, uri: str) -> list[str]:
    """What went wrong in any of eight processes."""
    import mlflow  # noqa: F401  once, before the forks

    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = context.Queue()
    writers = [
        context.Process(target=write_metrics, args=(n, str(home), uri, answers), daemon=True) for n in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    told = [answers.get(timeout=120) for _ in writers]
    for writer in writers:
        writer.join(30)
    return [line for line in told if line]


def test_eight_processes_at_once_make_the_tables_once_and_lose_no_metric(database: Postgres, told: Path) -> None:
    pytest.importorskip("psycopg", reason="pip install 'nightmill[server]'")
    uri = database_url("mlflow", servers_folder(told))
    assert uri.startswith("postgresql+psycopg://")
    assert write_at_once(told, uri) == []
    counted = database.run("psql", "-d", "mlflow", "-Atc", "select count(*), count(distinct run_uuid) from metrics")
    assert counted.strip() == f"{WRITERS * METRICS}|{WRITERS}"


def test_eight_processes_at_once_write_through_the_server(database: Postgres, told: Path, up: Servers) -> None:
    assert tracking_uri(told) == up.mlflow_url
    assert write_at_once(told, up.mlflow_url) == []
    counted = database.run("psql", "-d", "mlflow", "-Atc", "select count(*) from runs where status = 'FINISHED'")
    assert int(counted) == 2 * WRITERS


def test_eight_clients_at_once_write_flow_runs(database: Postgres, told: Path, up: Servers) -> None:
    from prefect import flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Completed, Running

    @flow
    def counted() -> None: ...

    def write(_number: int) -> int:
        with SyncPrefectClient(up.api_url, auth_string=up.auth) as client:
            for _ in range(RUNS):
                run = client.create_flow_run(counted, state=Running())
                client.set_flow_run_state(run.id, Completed(), force=True)
        return RUNS

    with ThreadPoolExecutor(WRITERS) as pool:
        assert sum(pool.map(write, range(WRITERS))) == WRITERS * RUNS
    rows = database.run("psql", "-d", "prefect", "-Atc", "select count(*) from flow_run where state_type = 'COMPLETED'")
    assert int(rows) == WRITERS * RUNS


def test_databases_that_a_release_has_migrated_are_left_alone(told: Path, up: Servers) -> None:
    folder = servers_folder(told)
    assert prepare_database("prefect", folder)
    assert prepare_database("mlflow", folder)
    assert not list(folder.glob("*.db"))


def test_password_of_the_database_is_in_no_file_and_no_client(database: Postgres, told: Path, up: Servers) -> None:
    found = [
        p.name for p in servers_folder(told).rglob("*") if p.is_file() and database.password in p.read_text("latin1")
    ]
    assert found == []
    assert database.password not in json.dumps(client_environment(told))


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_address_that_is_no_postgres_is_refused_without_showing_it(monkeypatch, name: str) -> None:
    for variable in (f"NIGHTMILL_{name.upper()}_DATABASE_FILE", f"NIGHTMILL_{name.upper()}_DATABASE"):
        monkeypatch.delenv(variable, raising=False)
    assert outside_database(name) == ""
    monkeypatch.setenv(f"NIGHTMILL_{name.upper()}_DATABASE", "mysql://nightmill:secret@host/name")
    with pytest.raises(RequestError, match="wanted postgresql://") as refused:
        outside_database(name)
    assert "secret" not in str(refused.value)


def test_secret_that_cannot_be_read_is_named(monkeypatch) -> None:
    monkeypatch.setenv("NIGHTMILL_PREFECT_DATABASE_FILE", "/run/secrets/missing")
    with pytest.raises(RequestError, match="/run/secrets/missing: cannot be read"):
        outside_database("prefect")
