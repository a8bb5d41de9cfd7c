"""Runs, locks and slots of the dead against a real Prefect server; whoever lives, and whatever has ended, stays as it is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling, Completed, Pending, Running

from tasks.flow_runs import OWNER_LABEL
from tasks.servers import embedded_prefect
from tasks.zombies import CANCELLED_S, PENDING_S, RUN_VARIABLE, sweep_cancelled, sweep_flow_runs, sweep_locks

HOST = socket.gethostname()
DEAD = f"{HOST}:{2**22 - 1}:0.0"
LIVING = f"{HOST}:{os.getpid()}:{psutil.Process().create_time()}"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    home = tmp_path_factory.mktemp("home")
    with (
        embedded_prefect(home) as address,
        temporary_settings({PREFECT_API_URL: address}),
        SyncPrefectClient(address) as client,
    ):
        yield client


@flow
def toy() -> None: ...


def run_in(client: SyncPrefectClient, state: State[Any], owner: str = "") -> FlowRun:
    run = client.create_flow_run(toy, state=state)
    if owner:
        client.update_flow_run_labels(run.id, {OWNER_LABEL: owner})
    return client.read_flow_run(run.id)


def state_of(client: SyncPrefectClient, run: UUID) -> tuple[str, str]:
    state = client.read_flow_run(run).state
    assert state is not None
    return state.type.value, state.message or ""


def test_running_run_of_a_dead_process_crashes_with_a_message_for_people(client: SyncPrefectClient) -> None:
    run = run_in(client, Running(), DEAD)
    assert [swept.name for swept in sweep_flow_runs(client)] == [run.name]
    state, message = state_of(client, run.id)
    assert state == "CRASHED"
    assert f"Process {2**22 - 1} on {HOST}" in message
    assert "Run the same night again" in message


def test_run_that_was_being_cancelled_by_a_dead_process_is_cancelled(client: SyncPrefectClient) -> None:
    run = run_in(client, Cancelling(), DEAD)
    sweep_flow_runs(client)
    assert state_of(client, run.id)[0] == "CANCELLED"


@pytest.mark.parametrize(
    ("state", "owner"),
    [
        (Running(), LIVING),
        (Running(), ""),
        (Running(), "elsewhere:1:0.0"),
        (Pending(), ""),
        (Completed(message="done"), DEAD),
    ],
    ids=["of the living", "unclaimed", "of another machine", "pending a moment", "terminal"],
)
def test_run_that_lives_may_live_or_has_ended_is_not_touched(
    client: SyncPrefectClient, state: State[Any], owner: str
) -> None:
    run = run_in(client, state, owner)
    assert run.name not in [swept.name for swept in sweep_flow_runs(client)]
    after = client.read_flow_run(run.id).state
    assert after is not None
    assert run.state is not None
    assert after.id == run.state.id


def test_pid_that_was_used_again_by_another_process_counts_as_gone(client: SyncPrefectClient) -> None:
    run = run_in(client, Running(), f"{HOST}:{os.getpid()}:{psutil.Process().create_time() - 100}")
    sweep_flow_runs(client)
    assert state_of(client, run.id)[0] == "CRASHED"


def test_slot_held_by_a_pending_run_that_never_came_is_free_after_the_sweep(client: SyncPrefectClient) -> None:
    """With the slot held for ever, a nightly would never run again (opsmill/infrahub#9856)."""
    deployment = client.create_deployment(flow_id=client.create_flow(toy), name="one-at-a-time", concurrency_limit=1)
    first, second = (client.create_flow_run_from_deployment(deployment) for _ in range(2))
    client.set_flow_run_state(first.id, Pending())
    client.set_flow_run_state(second.id, Pending())
    assert state_of(client, second.id)[0] == "SCHEDULED"
    sweep_flow_runs(client, datetime.now(UTC) + timedelta(seconds=PENDING_S + 60))
    state, message = state_of(client, first.id)
    assert state == "CRASHED"
    assert "never came" in message
    client.set_flow_run_state(second.id, Pending())
    assert state_of(client, second.id)[0] == "PENDING"


def test_flow_process_killed_at_work_leaves_a_run_that_the_sweep_finds(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    code = (
        "import time\nfrom prefect import flow, task\nfrom prefect.runtime import flow_run\nfrom tasks.flow_runs import claim_flow_run\n"
        "@task\ndef step(run): print(run, flush=True); time.sleep(100)\n"
        "@flow\ndef work():\n    claim_flow_run()\n    step(flow_run.id)\n"
        "work()\n"
    )
    environment = os.environ | {"PREFECT_API_URL": str(client.api_url), "PREFECT_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    run = UUID(process.stdout.readline().strip())
    sweep_flow_runs(client)
    assert state_of(client, run)[0] == "RUNNING"
    process.send_signal(signal.SIGKILL)
    process.wait()
    sweep_flow_runs(client)
    assert state_of(client, run)[0] == "CRASHED"


@pytest.fixture
def hung() -> Iterator[Callable[[FlowRun], psutil.Process]]:
    """Starts a process as a worker does for a run, which ignores SIGTERM and has a child in a session of its own."""
    started: list[subprocess.Popen[str]] = []
    code = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen(['sleep', '100'], start_new_session=True).pid, flush=True)\ntime.sleep(100)\n"
    )

    def start(run: FlowRun) -> psutil.Process:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {RUN_VARIABLE: str(run.id)},
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        return psutil.Process(int(process.stdout.readline()))

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_process_that_goes_on_after_its_run_was_cancelled_is_killed_with_its_children(client, hung) -> None:
    """The server calls a run Cancelled five minutes after nobody came to cancel it; its process worked on (PrefectHQ/prefect#21616)."""
    run, another = (client.create_flow_run(toy, state=Running()) for _ in range(2))
    child, another_child = hung(run), hung(another)
    for number, process in ((run, child.parent()), (another, another_child.parent())):
        client.update_flow_run_labels(number.id, {OWNER_LABEL: f"{HOST}:{process.pid}:{process.create_time()}"})
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    assert sweep_cancelled(client) == []  # it may still be ending by itself
    later = datetime.now(UTC) + timedelta(seconds=CANCELLED_S + 1)
    assert [swept.what for swept in sweep_cancelled(client, later)] == [f"its run {run.name} was Cancelled; killed"]
    assert not child.is_running()
    assert another_child.is_running()
    assert sweep_cancelled(client, later) == []


def test_process_that_has_another_flow_around_a_cancelled_one_is_left(client: SyncPrefectClient) -> None:
    run = run_in(client, Running(), LIVING)
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    assert sweep_cancelled(client, datetime.now(UTC) + timedelta(seconds=CANCELLED_S + 1)) == []


def test_locks_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    locks = tmp_path / "workspaces" / "demo" / "locks"
    locks.mkdir(parents=True)
    for name, pid, started in (("dead", 2**22 - 1, 0.0), ("living", os.getpid(), psutil.Process().create_time())):
        body = {"token": name, "host": HOST, "pid": pid, "started": started}
        (locks / f"{name}.json").write_text(json.dumps(body))
    assert [swept.name for swept in sweep_locks(tmp_path)] == ["demo/dead"]
    assert [path.name for path in locks.iterdir()] == ["living.json"]
