"""The steps of a search: a fold, a trial, and the report. A trial is a step like any other, with an address by key."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from spark_jobs.errors import DataError, RequestError, TrainingError
from spark_jobs.manifests import Handle, LabelledSet
from spark_jobs.requests import Outcome
from tasks.engine import current_engine, engine_in_use
from tasks.finetune_steps import PEFT, export_task, finetune_checkpoint, score_task
from tasks.publishing import SCRATCH
from tasks.search_worker import WorkerEngine
from tasks.steps import Step
from tasks.workspace import Workspace
from training.manifests import ModelFolder, SearchResult, TrialResult
from training.search.folds import write_fold
from training.search.report import SearchReportSpec, write_report
from training.search_spec import FoldSpec, TrialSpec


def fold_rows(labelled: LabelledSet, spec: FoldSpec) -> LabelledSet:
    """Train and validation -> the same with another part as validation, and without test."""
    engine = current_engine()
    return engine.run(
        Step(
            name="fold", handle=LabelledSet, entry="training.search.folds", spec=spec, night=engine.night,
            inputs={"labelled": labelled}, libraries=("pyarrow",), work=lambda attempt: write_fold(labelled, spec, attempt),
        )
    )  # fmt: skip


def trial_step(labelled: LabelledSet, base: ModelFolder, spec: TrialSpec, night: str) -> Step[TrialResult]:
    """Train, export and score; what is kept is the score. Runs in the engine of a Dask worker."""
    return Step(
        name="trial", handle=TrialResult, entry="training.finetune.main",
        entries=("training.finetune.export", "training.finetune.score"), spec=spec, night=night,
        inputs={"labelled": labelled, "base": base}, libraries=(*PEFT, "sacrebleu", "rouge-score"),
        work=lambda attempt: train_and_score(labelled, base, spec, attempt),
    )  # fmt: skip


def train_and_score(labelled: LabelledSet, base: ModelFolder, spec: TrialSpec, attempt: Path) -> Outcome:
    """The steps of a fine-tuning, in a workspace inside the attempt's scratch folder: a killed trial goes on from the last
    checkpoint, and a finished one leaves no model behind.

    Values that cannot be trained with are a result too, which no repetition would change: the trial failed.
    """
    outer = current_engine()
    assert isinstance(outer, WorkerEngine)
    with engine_in_use(outer.inside(Workspace(attempt / SCRATCH / "workspace"))):
        try:
            checkpoint = finetune_checkpoint(labelled, base, spec.finetune)
            model = export_task(checkpoint, base, labelled)
            card = score_task(model, labelled, spec.score)
        except (TrainingError, RequestError, DataError) as error:
            return outcome_of(spec.metric, 0, attempt, {}, failure=str(error).splitlines()[0])
    scores = json.loads((Path(card.folder()) / "scores.json").read_text())
    return outcome_of(spec.metric or card.metric, card.num_rows, attempt, scores, sha256=files_sha256(model))


def outcome_of(
    metric: str, num_rows: int, attempt: Path, scores: dict[str, Any], failure: str = "", sha256: str = ""
) -> Outcome:
    """Raises: RequestError if the task has no such metric."""
    if scores and metric not in scores:
        raise RequestError(f"search.metric {metric!r}: this task has {', '.join(scores)}; choose one of them")
    (attempt / "data").mkdir(exist_ok=True)
    (attempt / "data" / "scores.json").write_text(json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
    score = scores.get(metric, {})
    if scores and score["value"] is None:
        failure = f"{metric} of {num_rows} rows is undefined"
    fields = {"metric": metric, "failure": failure, "model_sha256": sha256}
    fields |= {name: score.get(name) for name in ("value", "low", "high")}
    return Outcome(num_rows=num_rows, format="json", fields=fields)


def files_sha256(handle: Handle) -> str:
    """Of names and bytes of the data alone: the same for two runs on different nights."""
    told = "".join(f"{file.path}\0{file.sha256}\n" for file in handle.files if file.path.startswith("data/"))
    return hashlib.sha256(told.encode()).hexdigest()


def report_search(spec: SearchReportSpec, results: dict[str, TrialResult]) -> SearchResult:
    """Trials -> the table, the best spec, the pictures. results: of every training, by a name that tells which."""
    engine = current_engine()
    return engine.run(
        Step(
            name="search", handle=SearchResult, entry="training.search.report", spec=spec, night=engine.night,
            inputs=dict(results), libraries=("optuna",), work=lambda attempt: write_report(spec, attempt),
        )
    )  # fmt: skip
