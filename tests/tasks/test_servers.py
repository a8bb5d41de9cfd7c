"""Real servers on free ports; what must be gone is looked for by the mark that every process of ours carries."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from spark_jobs.errors import NightmillError, RequestError
from tasks.child import TOKEN, marked
from tasks.daemons import MARK, health, start_all, stop_all
from tasks.server_databases import database, note_version, prepare_database, template
from tasks.servers import (
    EmbeddedPrefect,
    address_elsewhere,
    answers,
    basic_auth,
    client_environment,
    read_state,
    running_servers,
    servers_folder,
    state_file,
    tracking_uri,
)


def of_home(home: Path) -> list[psutil.Process]:
    return marked(MARK, lambda value: value == str(home))


def status_of(url: str, headers: dict[str, str]) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as err:
        return err.code


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_servers_that_are_up_answer_and_are_not_started_twice(servers_home):
    home, servers = servers_home
    assert [(name, works) for name, _, works, _ in health(home)] == [
        ("prefect", True),
        ("mlflow", True),
        ("worker-cpu", True),
        ("worker-gpu", True),
    ]
    assert start_all(home, servers.prefect_port, servers.mlflow_port) == servers
    assert running_servers(home) == servers


def test_prefect_api_wants_the_password_and_the_state_file_is_private(servers_home):
    home, servers = servers_home
    flows = f"{servers.api_url}/work_pools/cpu"
    assert status_of(flows, {}) == 401
    assert status_of(flows, basic_auth("nightmill:wrong")) == 401
    assert status_of(flows, basic_auth(servers.auth)) == 200
    assert stat.S_IMODE(state_file(home).stat().st_mode) == 0o600


def test_mlflow_refuses_foreign_hosts(servers_home):
    """DNS rebinding: a page elsewhere whose name was pointed at loopback."""
    _, servers = servers_home
    assert (
        status_of(f"{servers.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=1", {"Host": "evil.example"})
        == 403
    )


def test_clients_are_sent_to_the_servers_that_are_up(servers_home):
    home, servers = servers_home
    environment = client_environment(home)
    assert environment["PREFECT_API_URL"] == servers.api_url
    assert environment["PREFECT_API_AUTH_STRING"] == servers.auth
    assert environment["MLFLOW_TRACKING_URI"] == servers.mlflow_url
    with EmbeddedPrefect(home) as embedded:
        assert embedded.wait() == servers.api_url
    assert answers("prefect", servers.prefect_port, servers.auth)


def test_port_taken_gives_one_message_and_leaves_nothing(tmp_path, taken_port):
    with pytest.raises(NightmillError, match=f"port {taken_port} on 127.0.0.1 is taken.*--mlflow-port"):
        start_all(tmp_path, 0, taken_port)
    assert of_home(tmp_path) == []
    assert read_state(tmp_path) is None


def test_server_that_dies_while_starting_shows_the_end_of_its_log(tmp_path):
    database("prefect", servers_folder(tmp_path)).parent.mkdir()
    database("prefect", servers_folder(tmp_path)).write_text("not a database" * 100)
    with pytest.raises(NightmillError, match=r"died while starting(.|\n)*file is not a database"):
        start_all(tmp_path, free_port(), free_port())
    assert of_home(tmp_path) == []


def test_without_servers_a_home_has_a_private_api_and_a_database(tmp_path):
    assert "PREFECT_API_URL" not in client_environment(tmp_path)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/servers/mlflow.db"
    with EmbeddedPrefect(tmp_path) as embedded:
        assert status_of(embedded.wait() + "/health", {}) == 200
        child = embedded._child
        assert child is not None
    assert marked(TOKEN, lambda value: value == child.token) == []


def test_private_server_dies_with_a_killed_run(tmp_path):
    script = (
        "import os, signal; from pathlib import Path; from tasks.servers import EmbeddedPrefect\n"
        f"server = EmbeddedPrefect(Path({str(tmp_path)!r})); print(server._child.token, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while marked(TOKEN, lambda value: value == killed.stdout.strip()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_down_kills_also_what_left_its_group_and_ignores_sigterm(tmp_path, monkeypatch):
    """Prefect's workers start flow runs in sessions of their own."""
    monkeypatch.setattr("tasks.daemons.STOP_S", 0.5)
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    stray = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {MARK: str(tmp_path)}, start_new_session=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    stray.stdout.readline()
    assert stop_all(tmp_path) == [stray.pid]
    assert of_home(tmp_path) == []


def test_new_home_gets_a_copy_of_the_migrated_template(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_TEMPLATES", str(tmp_path / "templates"))
    servers = tmp_path / "servers"
    assert prepare_database("prefect", servers) is False
    (tmp_path / "templates").mkdir()
    template("prefect", tmp_path / "templates").write_text("migrated")
    assert prepare_database("prefect", servers) is True
    assert database("prefect", servers).read_text() == "migrated"


def test_database_of_another_release_is_migrated_again(tmp_path):
    database("prefect", tmp_path).write_text("old")
    (tmp_path / "versions.json").write_text('{"prefect": "3.0.0"}')
    assert prepare_database("prefect", tmp_path) is False
    note_version("prefect", tmp_path)
    assert prepare_database("prefect", tmp_path) is True


def test_servers_elsewhere_are_used_as_their_own_variables_say_and_nothing_is_made_here(monkeypatch, tmp_path):
    monkeypatch.setenv("NIGHTMILL_PROFILE", "cluster")
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(RequestError, match=f"NIGHTMILL_PROFILE=cluster wants {variable}"):
            address_elsewhere(variable)
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(tmp_path) == "http://mlflow:5000"
    assert client_environment(tmp_path)["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert prepare_database("mlflow", servers_folder(tmp_path))
    with EmbeddedPrefect(tmp_path) as server:
        assert server.wait() == "http://prefect:4200/api"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(400)
def test_up_starts_what_died_on_the_same_port_with_the_same_password_and_lets_the_rest_go_on(tmp_path):
    """A night in work talks to that address with that password, and lives under a worker that has not died."""
    before = start_all(tmp_path, free_port(), free_port())
    try:
        for process in before.processes:
            if process.name in ("prefect", "worker-gpu"):
                os.kill(process.pid, signal.SIGKILL)
        dead = {"prefect", "worker-gpu"}
        deadline = time.monotonic() + 10
        while {process.name for process in before.dead()} != dead:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        said = []
        after = start_all(tmp_path, say=said.append)
        assert said[0] == "not running: prefect, worker-gpu; the rest goes on"
        assert (after.prefect_port, after.mlflow_port, after.auth) == (
            before.prefect_port,
            before.mlflow_port,
            before.auth,
        )
        changed = {now.name for now, then in zip(after.processes, before.processes, strict=True) if now != then}
        assert changed == dead
        assert [works for _, _, works, _ in health(tmp_path)] == [True] * 4
    finally:
        stop_all(tmp_path)
    assert of_home(tmp_path) == []
