"""The compare-tasks job: one model's predictions against another's, on the same rows.

Inputs: ours, theirs (TaskScorecards of one labelled set and task), labelled (LabelledSet). Output: a TaskComparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from spark_jobs.errors import DataError
from spark_jobs.manifests import LabelledSet
from spark_jobs.requests import Outcome, Request
from training.finetune.examples import read_rows
from training.finetune.task import Prediction, Row
from training.finetune_spec import ScoreTaskSpec
from training.inputs import input_uri
from training.manifests import TaskScorecard
from training.metrics.bootstrap import Bootstrap, Difference, Metric, paired_difference, resample_sums
from training.metrics.mcnemar import mcnemar

COMPARED = ("classification", "relation", "multi_label")


def run(request: Request) -> Outcome:
    """Raises: DataError if the two were not made of the same rows, or the task has no count a row."""
    spec = ScoreTaskSpec.model_validate(request.spec)
    ours, theirs = (TaskScorecard.load(input_uri(request, role)) for role in ("ours", "theirs"))
    labelled = LabelledSet.load(input_uri(request, "labelled"))
    rows = list(read_rows(labelled, spec.split, spec.max_rows))
    found = compare(rows, predictions_of(ours), predictions_of(theirs), spec)
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "comparison.json").write_text(json.dumps(found, indent=1) + "\n")
    return Outcome(num_rows=len(rows), format="json", fields=found)


def predictions_of(card: TaskScorecard) -> dict[str, list[Prediction]]:
    table = pq.read_table(Path(card.folder()) / "predictions.parquet").to_pydict()
    return {name: json.loads(told) for name, told in zip(table["id"], table["prediction"], strict=True)}


def compare(
    rows: Sequence[Row],
    ours: Mapping[str, list[Prediction]],
    theirs: Mapping[str, list[Prediction]],
    spec: ScoreTaskSpec,
) -> dict[str, Any]:
    """Fields of `TaskComparison`: ours minus theirs, on the same draws of the rows."""
    missing = [row["id"] for row in rows if row["id"] not in ours or row["id"] not in theirs]
    if missing:
        raise DataError(
            f"row {missing[0]} and {len(missing) - 1} more have no prediction of both: score both models on one split"
        )
    name, metric = ("micro_f1", _micro_f1) if spec.task.kind == "multi_label" else ("accuracy", _mean)
    counts = [np.array([counted(row, told[row["id"]], spec) for row in rows]) for told in (ours, theirs)]
    bootstrap = Bootstrap(seed=spec.seed)
    found = difference(counts[0], counts[1], metric, bootstrap)
    p = float("nan")
    if name == "accuracy":
        p = mcnemar([bool(right) for right in counts[0][:, 0]], [bool(right) for right in counts[1][:, 0]])
    return {
        "task": spec.task.kind, "metric": name, "difference": found.value, "low": found.low, "high": found.high,
        "mcnemar_p": p if np.isfinite(p) else None,
    }  # fmt: skip


def difference(ours_NS: np.ndarray, theirs_NS: np.ndarray, metric: Metric, bootstrap: Bootstrap) -> Difference:
    return paired_difference(resample_sums(ours_NS, bootstrap), resample_sums(theirs_NS, bootstrap), metric)


def counted(row: Row, predictions: list[Prediction], spec: ScoreTaskSpec) -> tuple[float, ...]:
    """What of one row is summed. accuracy: right, rows. micro F1: found and wanted, found, wanted. None found counts as wrong.

    Raises: DataError for a task whose metric is no such function.
    """
    if spec.task.kind not in COMPARED:
        raise DataError(f"task.kind {spec.task.kind} is compared by its scores' intervals alone, not by rows")
    wanted = set(row["labels"] or [])
    if spec.task.kind != "multi_label":
        return float(bool(predictions) and predictions[0]["label"] in wanted), 1.0
    found = set(predictions[0]["labels"] or []) if predictions else set()
    return float(len(found & wanted)), float(len(found)), float(len(wanted))


def _mean(sums: np.ndarray) -> np.ndarray:
    mean: np.ndarray = sums[..., 0] / sums[..., 1]
    return mean


def _micro_f1(sums: np.ndarray) -> np.ndarray:
    total = sums[..., 1] + sums[..., 2]
    f1: np.ndarray = np.divide(2 * sums[..., 0], total, out=np.full_like(total, np.nan), where=total > 0)
    return f1
