"""Artifacts against a real Prefect server, without one, and outside of a run."""

from __future__ import annotations

from types import SimpleNamespace

import prefect
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tasks import artifacts
from tasks.artifacts import ArtifactObserver, describe_training, never_fails, publish_night_table
from tasks.engine import StepResult

EVENT = {"step": 5, "num_steps": 10, "loss": 3.21, "tokens_per_s": 5000.0, "eta_s": 12.0}
TRAIN = SimpleNamespace(name="train")


@pytest.fixture
def client(servers_home):
    _, servers = servers_home
    settings = {PREFECT_API_URL: servers.api_url, PREFECT_API_AUTH_STRING: servers.auth}
    with temporary_settings(settings), SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        yield client


def test_progress_of_training_is_one_artifact_updated_in_place(client, monkeypatch):
    monkeypatch.setattr(artifacts, "UPDATE_S", 0.0)

    @prefect.flow
    def train():
        observer = ArtifactObserver()
        observer.step_started(TRAIN, "first run")
        for step in (1, 5, 10):
            observer.step_event(TRAIN, EVENT | {"step": step})

    train()
    (progress,) = [a for a in client.read_artifacts() if a.key == "progress-train"]
    assert progress.data == 100.0
    assert progress.description == "step 10/10, loss 3.210, 5,000 tokens/s, 12 s left"


def test_night_table_has_a_row_a_step(client):
    @prefect.flow
    def night():
        publish_night_table([StepResult(step="ingest", state="ran", why="first run", rows=3)], "2026-11-25", "promoted")

    night()
    (table,) = [a for a in client.read_artifacts() if a.key == "night-table"]
    assert '"state": "ran"' in table.data
    assert table.description == "Night 2026-11-25: promoted"


def test_outside_of_a_flow_run_nothing_is_sent():
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        publish_night_table([], "2026-11-25", "kept")
        ArtifactObserver().step_event(TRAIN, EVENT)


def test_api_that_is_gone_breaks_nothing(monkeypatch, capsys):
    monkeypatch.setattr(artifacts, "in_flow_run", lambda: True)

    @never_fails
    def send():
        raise ConnectionError("gone")

    assert send() is None
    assert "ConnectionError: gone" in capsys.readouterr().err


def test_training_is_described_by_what_is_known():
    assert describe_training({"step": 1, "num_steps": 2}) == "step 1/2"
