"""Real MLflow on SQLite; servers that are dead are ports nobody listens on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from spark_jobs.manifests import Documents, FileEntry
from spark_jobs.specs import CleanSpec
from tasks.engine import StepResult
from tasks.steps import Step
from tasks.tracking import TELEMETRY, Tracking
from tasks.tracking_observer import TrackingObserver, flatten, output_numbers
from tasks.workspace import Workspace

NIGHT = "2026-11-25"


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / tmp_path.name.replace("_", "-"))


def documents(folder: Path, step: str, rows: int) -> Documents:
    uri = folder / f"documents/{step}-0123456789abcdef"
    (uri / "data").mkdir(parents=True, exist_ok=True)
    handle = Documents(
        step=step, key="0123456789abcdef", night=NIGHT, format="parquet", num_rows=rows, spec={}, code={}, libraries={},
        files=(FileEntry(path="data/part-00000.parquet", size_bytes=0, sha256="0" * 64, num_rows=rows),),
        counts={"in": rows + 2, "out": rows, "reject.too_short": 2}, uri=str(uri),
    )  # fmt: skip
    (uri / "_manifest.json").write_text(handle.canonical())
    return handle


def clean_step(raw: Documents) -> Step[Documents]:
    return Step(
        name="clean", handle=Documents, entry="spark_jobs.specs", spec=CleanSpec(), night=NIGHT, inputs={"raw": raw}
    )


def track_one_step(uri: str, workspace: Workspace, artifacts: Path) -> str:
    """A night with one step; returns the step's key."""
    raw, cleaned = documents(workspace.root, "ingest", 7), documents(workspace.root, "clean", 5)
    step = clean_step(raw)
    observer = TrackingObserver(Tracking(uri, workspace, artifacts), NIGHT, {"name": "demo", "train": {"seed": 3}})
    observer.step_started(step, "first run")
    for number in range(3):
        observer.step_event(step, {"step": number, "num_steps": 3, "loss": 5.0 - number, "tokens_per_s": 100.0})
    result = StepResult(step="clean", state="ran", why="first run", seconds=1.5, cpu_seconds=2.5, rows=5)
    observer.step_ended(step, result, cleaned)
    observer.close()
    return observer.run_key(step)


def runs_by_name(uri: str, workspace: Workspace) -> dict:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(workspace.name)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_night_with_a_step_is_a_parent_and_a_child_with_inputs_and_metrics(uri, workspace, tmp_path):
    track_one_step(uri, workspace, tmp_path / "artifacts")
    runs = runs_by_name(uri, workspace)
    night, child = runs[NIGHT], runs["clean"]
    assert set(runs) == {NIGHT, "clean"}
    assert child.data.tags["mlflow.parentRunId"] == night.info.run_id
    assert (night.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.params["min_words"] == "50"
    assert night.data.params["train.seed"] == "3"
    assert child.data.metrics["loss"] == 3.0
    assert child.data.metrics["counts.reject.too_short"] == 2
    assert child.data.metrics["seconds"] == 1.5
    (dataset,) = child.inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in dataset.tags}
    assert tags["nightmill.manifest_sha256"] == documents(workspace.root, "ingest", 7).digest
    assert tags["mlflow.data.context"] == "raw"
    assert (tmp_path / "artifacts" / workspace.name / child.info.run_id / "artifacts/_manifest.json").is_file()


def test_traces_of_a_step_are_logged_beside_its_manifest(uri, workspace, tmp_path):
    """Publishing has moved them out of the attempt; TensorBoard reads the same files."""
    traces = workspace.root / "logs" / NIGHT / "tensorboard" / "clean-0123456789abcdef" / "profile"
    traces.mkdir(parents=True)
    (traces / "rank-0.pt.trace.json.gz").write_bytes(b"trace")
    track_one_step(uri, workspace, tmp_path / "artifacts")
    run = runs_by_name(uri, workspace)["clean"].info.run_id
    logged = tmp_path / "artifacts" / workspace.name / run / "artifacts/profile/rank-0.pt.trace.json.gz"
    assert logged.read_bytes() == b"trace"


def test_same_night_tracked_twice_stays_two_runs(uri, workspace, tmp_path):
    track_one_step(uri, workspace, tmp_path / "artifacts")
    first = {run.info.run_id for run in runs_by_name(uri, workspace).values()}
    track_one_step(uri, workspace, tmp_path / "artifacts")
    assert {run.info.run_id for run in runs_by_name(uri, workspace).values()} == first


def test_dead_server_costs_telemetry_which_the_next_run_delivers_late(uri, workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("tasks.tracking.DRAIN_S", 1.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        track_one_step(f"http://127.0.0.1:{unused.getsockname()[1]}", workspace, tmp_path / "artifacts")
    assert (workspace.root / TELEMETRY).is_file()
    Tracking(uri, workspace, tmp_path / "artifacts").close()
    runs = runs_by_name(uri, workspace)
    assert not (workspace.root / TELEMETRY).exists()
    assert runs[NIGHT].data.tags["nightmill.telemetry_gap"]
    assert runs["clean"].data.metrics["loss"] == 3.0
    assert runs["clean"].info.status == "FINISHED"


def test_run_of_a_killed_process_is_ended_as_killed(uri, workspace, tmp_path):
    script = (
        "import os, signal; from pathlib import Path; from tasks.tracking import *; from tasks.tracking_observer import *\n"
        f"tracking = Tracking({uri!r}, Workspace(Path({str(workspace.root)!r})), Path({str(tmp_path)!r}))\n"
        f"TrackingObserver(tracking, {NIGHT!r})\n"
        "assert tracking.wait(60)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], check=False, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    assert killed.returncode == -9
    assert runs_by_name(uri, workspace)[NIGHT].info.status == "RUNNING"
    Tracking(uri, workspace, tmp_path).close()
    tracking = Tracking(uri, workspace, tmp_path)
    assert tracking.wait(60)
    tracking.close()
    assert runs_by_name(uri, workspace)[NIGHT].info.status == "KILLED"


def test_flatten_names_leaves_by_path():
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": "x"}) == {"a.b": "1", "a.c": "[1, 2]", "d": "x"}


def test_output_numbers_hold_rows_and_counts(tmp_path):
    assert output_numbers(documents(tmp_path, "clean", 5)) == {
        "rows": 5.0,
        "counts.in": 7.0,
        "counts.out": 5.0,
        "counts.reject.too_short": 2.0,
    }


def test_undelivered_telemetry_is_plain_json(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.tracking.DRAIN_S", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    track_one_step("http://127.0.0.1:9", workspace, tmp_path)
    records = [json.loads(line) for line in (workspace.root / TELEMETRY).read_text().splitlines()]
    assert records[0]["do"] == "start"
