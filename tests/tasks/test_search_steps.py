"""A trial as a step, and as a task on a Dask worker: what it refuses and what it records as failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from spark_jobs.errors import RequestError
from spark_jobs.manifests import MANIFEST, FileEntry, Handle, LabelledSet, file_sha256
from tasks.search_dask import local_cluster, run_trial
from tasks.search_steps import files_sha256, outcome_of, trial_step
from tasks.search_worker import TrialJob
from training.finetune_spec import FinetuneSpec, ScoreTaskSpec
from training.manifests import ModelFolder
from training.search_spec import TrialSpec

NIGHT = "2026-11-26"
SCORES = {
    "accuracy": {"value": 0.75, "low": 0.5, "high": 0.9},
    "matthews": {"value": None, "low": None, "high": None},
}
SPEC = TrialSpec(finetune=FinetuneSpec(), score=ScoreTaskSpec(split="validation"))


def publish(kind: type[Handle], root: Path, step: str, night: str = NIGHT, **fields):
    """An output with one small file."""
    folder = root / kind.kind / f"{step}-{'0' * 16}"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    path = folder / "data" / "file"
    path.write_text(step)
    entry = FileEntry(path="data/file", size_bytes=path.stat().st_size, sha256=file_sha256(path))
    handle = kind(
        step=step, key="0" * 16, night=night, format="x", num_rows=1, files=(entry,), spec={}, code={}, libraries={}, **fields
    )  # fmt: skip
    (folder / MANIFEST).write_text(handle.canonical())
    return kind.load(folder)


@pytest.fixture
def inputs(tmp_path) -> tuple[LabelledSet, ModelFolder]:
    labelled = publish(LabelledSet, tmp_path, "label", task="classification")
    model = {"scheme": "dense", "num_parameters": 1, "weight_bytes": 1, "effective_bits": 32.0}
    return labelled, publish(ModelFolder, tmp_path, "import-model", **model)


def test_trial_takes_the_metric_asked_for_and_keeps_all_scores(tmp_path):
    outcome = outcome_of("accuracy", 20, tmp_path, SCORES, sha256="abc")
    assert outcome.fields == {
        "metric": "accuracy", "failure": "", "model_sha256": "abc", "value": 0.75, "low": 0.5, "high": 0.9,
    }  # fmt: skip
    assert json.loads((tmp_path / "data" / "scores.json").read_text()) == SCORES


def test_score_that_is_undefined_is_a_failure(tmp_path):
    outcome = outcome_of("matthews", 20, tmp_path, SCORES)
    assert outcome.fields["value"] is None
    assert outcome.fields["failure"] == "matthews of 20 rows is undefined"


def test_metric_that_the_task_does_not_have_is_refused_naming_those_it_has(tmp_path):
    with pytest.raises(RequestError, match=r"search\.metric 'f1': this task has accuracy, matthews"):
        outcome_of("f1", 20, tmp_path, SCORES)


def test_key_of_a_trial_follows_its_spec_and_the_code_of_all_three_jobs(inputs):
    step = trial_step(*inputs, SPEC, NIGHT)
    other = trial_step(*inputs, SPEC.model_copy(update={"finetune": FinetuneSpec(seed=1)}), NIGHT)
    assert step.key() == trial_step(*inputs, SPEC, "2026-11-27").key() != other.key()
    assert {"training.finetune.main", "training.finetune.export", "training.finetune.score"} <= step.identity()[
        "code"
    ].keys()


def test_worker_with_other_code_or_libraries_refuses_the_trial(tmp_path, inputs):
    labelled, base = inputs
    job = TrialJob(
        name="trial 3", key="other", root=str(tmp_path), night=NIGHT, labelled=labelled.address, base=base.address, spec=SPEC
    )  # fmt: skip
    with disable_run_logger(), pytest.raises(RequestError, match=r"trial 3: the Dask worker on .* has other code"):
        run_trial.fn(job.model_dump_json())
    assert not (tmp_path / "attempts").exists()


@pytest.mark.parametrize("workers", ["0", "two", "-1"])
def test_number_of_workers_that_is_none_is_refused(monkeypatch, workers):
    monkeypatch.setenv("NIGHTMILL_DASK_WORKERS", workers)
    with pytest.raises(RequestError, match=f"NIGHTMILL_DASK_WORKERS={workers}: wanted a number of processes"):
        local_cluster()


def test_digest_of_a_model_is_of_its_data_whatever_the_night(tmp_path):
    fields = {"scheme": "dense", "num_parameters": 1, "weight_bytes": 1, "effective_bits": 32.0}
    models = [publish(ModelFolder, tmp_path / night, "m", night, **fields) for night in (NIGHT, "2026-11-27")]
    assert models[0].digest != models[1].digest
    assert files_sha256(models[0]) == files_sha256(models[1])
    assert files_sha256(models[0]) != files_sha256(publish(ModelFolder, tmp_path / "n", "n", **fields))
