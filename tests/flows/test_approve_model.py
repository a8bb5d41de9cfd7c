"""The flow that asks a person, run by a real worker of a real Prefect server, answered through the API as its form does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.deploy import apply_file, prefect_file
from tasks import registry
from tasks.application import Application
from tasks.ledger import champion_now, read_ledger
from tasks.machine import set_environment
from tasks.servers import Servers, client_environment
from tasks.workspace import Workspace

HUMAN = "release.approval=human"
START_S = 240.0
NOBODY_S = 60.0  # the time for an answer that does not come

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def client(servers_home: tuple[Path, Servers]) -> Iterator[SyncPrefectClient]:
    """Of the server that `nightmill up` started, with our deployments applied and this process in its home."""
    home, servers = servers_home
    before = dict(os.environ)
    os.environ["NIGHTMILL_HOME"] = str(home)
    set_environment()
    os.environ.update(client_environment(home))
    apply_file(prefect_file(), servers.api_url, servers.auth)
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as open_client:
        yield open_client
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def awaiting_pipeline(
    client: SyncPrefectClient, decided: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, float], Workspace]:
    """A pipeline whose first night is champion and whose second awaits approval for so many hours."""

    def make(name: str, hours: float) -> Workspace:
        workspace = decided.make_nights(name, 2)
        with Application("torch", tmp_path_factory.mktemp("logs")) as torch:
            decided.released(workspace, decided.NIGHTS[0], torch)
            second = decided.released(workspace, decided.NIGHTS[1], torch, HUMAN, f"release.approval_hours={hours}")
        assert second.decision == "awaiting"
        return workspace

    return make


def start(client: SyncPrefectClient, pipeline: str) -> Any:
    deployment = client.read_deployment_by_name("approve-model/approve-model")
    return client.create_flow_run_from_deployment(deployment.id, parameters={"pipeline": pipeline}).id


def reached(client: SyncPrefectClient, run_id: Any, *states: str) -> Any:
    """The flow run once it is in one of these states."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        run = client.read_flow_run(run_id)
        if run.state.type.value in states:
            return run
        time.sleep(0.5)
    pytest.fail(f"flow run is {run.state!r}, wanted {states}")


@pytest.fixture(scope="module")
def unanswered(
    client: SyncPrefectClient, awaiting_pipeline: Callable[[str, float], Workspace]
) -> tuple[Workspace, Any]:
    """A pipeline about which nobody is going to say a word, and the run that asks; its time passes while the other test answers."""
    workspace = awaiting_pipeline("asks-nobody", NOBODY_S / 3600)
    return workspace, start(client, workspace.name)


def test_person_approves_one_candidate_and_rejects_another_in_the_form(client, awaiting_pipeline, unanswered):
    pipelines = {answer: awaiting_pipeline(f"asks-{answer}", 5) for answer in ("approve", "reject")}
    runs = {answer: start(client, workspace.name) for answer, workspace in pipelines.items()}
    for run_id in runs.values():
        paused = reached(client, run_id, "PAUSED", "FAILED", "CRASHED")
        assert paused.state.type.value == "PAUSED", paused.state
    sweep = client.read_deployment_by_name("sweep/sweep")  # who waits must not keep others from running
    assert reached(client, client.create_flow_run_from_deployment(sweep.id).id, "COMPLETED", "FAILED", "CRASHED")
    for answer, run_id in runs.items():
        client.resume_flow_run(run_id, run_input={"decision": answer, "reason": "read it", "name": "Ada"})
    for run_id in runs.values():
        assert reached(client, run_id, "COMPLETED", "FAILED", "CRASHED").state.type.value == "COMPLETED"
    approved, rejected = (read_ledger(pipelines[answer])[-1] for answer in ("approve", "reject"))
    assert (approved.decision, approved.by, approved.who, approved.why) == ("promoted", "hand", "Ada", "read it")
    assert (rejected.decision, rejected.by, rejected.who) == ("rejected", "hand", "Ada")
    assert [champion_now(w).version for w in pipelines.values()] == ["2", "1"]
    found = [registry.aliases_of(registry.registry_client(), w.name) for w in pipelines.values()]
    assert found == [{"champion": "2"}, {"champion": "1"}]


def test_nobody_answers_and_the_run_completes_with_the_champion_kept(client, unanswered):
    workspace, run_id = unanswered
    ended = reached(client, run_id, "COMPLETED", "FAILED", "CRASHED")
    states = {state.type.value for state in client.read_flow_run_states(run_id)}
    assert ended.state.type.value == "COMPLETED"
    assert "FAILED" not in states, "an alarm would have told a failure"
    last = read_ledger(workspace)[-1]
    assert (last.decision, last.by, last.champion_version) == ("expired", "gate", "1")
    assert registry.aliases_of(registry.registry_client(), workspace.name) == {"champion": "1"}
