"""The score-task job: predictions and metrics of a fine-tuned folder on a split it did not see.

Inputs: model (ModelFolder), labelled (LabelledSet), and base (ModelFolder) where it is compared with what it was made from,
as a preference is. Output: a TaskScorecard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from spark_jobs.errors import DataError, RequestError
from spark_jobs.manifests import LabelledSet
from spark_jobs.requests import Outcome, Request
from training.evaluate.character_noise import noisy_rows
from training.finetune.examples import encode_rows, read_rows
from training.finetune.main import make_task_of
from training.finetune.task import Prediction, Row, Task, in_batches
from training.finetune_spec import ScoreTaskSpec
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.metrics.score import Score
from training.model_folder import load_model
from training.processes import num_threads


def run(request: Request) -> Outcome:
    """Raises: DataError if the split is empty, or no prediction of it can be made."""
    spec = ScoreTaskSpec.model_validate(request.spec)
    if spec.noise_share:
        check_noise(spec.task.kind)
    model = ModelFolder.load(input_uri(request, "model"))
    labelled = LabelledSet.load(input_uri(request, "labelled"))
    torch.set_num_threads(num_threads())
    rows = list(read_rows(labelled, spec.split, spec.max_rows))
    if not rows:
        raise DataError(f"labelled set {labelled.address} has no row of split {spec.split}: score another split")
    task = make_task_of(spec.task, labelled, model)
    network = load_model(model)
    reference = load_model(ModelFolder.load(input_uri(request, "base"))) if "base" in request.inputs else None
    predictions, unusable = predict_rows(network, task, rows, spec.batch_size, reference)
    scores = task.score(rows, predictions, spec.seed)
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    if spec.noise_share:
        noisy = list(noisy_rows(rows, spec.task.kind, spec.noise_share, spec.seed))
        answers, _ = predict_rows(network, task, noisy, spec.batch_size, reference)
        (Path(request.out) / "noisy").mkdir(exist_ok=True)
        write_predictions(noisy, answers, Path(request.out) / "noisy" / "predictions.parquet")
        scores |= under_noise(task.score(noisy, answers, spec.seed), spec.noise_share)
    write_predictions(rows, predictions, data / "predictions.parquet")
    main = write_scores(scores, data / "scores.json")
    counts = {"in": len(rows), "out": len(rows)} | {f"unusable.{reason}": n for reason, n in sorted(unusable.items())}
    fields = {
        "task": spec.task.kind, "model": model.address, "metric": main.name,
        "value": main.value, "low": main.low, "high": main.high,
    }  # fmt: skip
    return Outcome(num_rows=len(rows), format="parquet", counts=counts, fields=fields)


def check_noise(kind: str) -> None:
    """Raises: RequestError where what is read is whole dialogues, whose answers are also what is judged."""
    if kind in ("dialogue", "preference"):
        raise RequestError(f"score.noise_share: {kind} has no input apart from what is judged; set it to 0")


def under_noise(scores: dict[str, Score], share: float) -> dict[str, Score]:
    """The same metrics by names of their own."""
    return {
        f"noisy/{name}": score.model_copy(
            update={"name": f"noisy/{name}", "signature": f"noise:{share:g}|{score.signature}"}
        )
        for name, score in scores.items()
    }


def predict_rows(
    model: nn.Module, task: Task, rows: Sequence[Row], batch_size: int, reference: nn.Module | None = None
) -> tuple[dict[str, list[Prediction]], dict[str, int]]:
    """Predictions by row id, [] for rows that cannot be encoded; and how many these are, by reason."""
    predictions: dict[str, list[Prediction]] = {row["id"]: [] for row in rows}
    examples, unusable = encode_rows(task, iter(rows))
    if reference is not None:
        examples = task.prepare(reference, examples, torch.device("cpu"))
    answered: dict[int, Prediction] = {}
    for batch in in_batches(examples, batch_size):
        for example, prediction in zip(batch, task.predict(model, task.collate(batch)), strict=True):
            answered[id(example)] = prediction
    for example in examples:  # windows of a row in the order they were cut
        predictions[example.id].append(answered[id(example)])
    return predictions, unusable


def write_predictions(rows: Sequence[Row], predictions: dict[str, list[Prediction]], path: Path) -> None:
    ids = [row["id"] for row in rows]
    table = {"id": ids, "prediction": [json.dumps(predictions[name], ensure_ascii=False) for name in ids]}
    pq.write_table(pa.table(table), path, compression="zstd")


def write_scores(scores: dict[str, Score], path: Path) -> Score:
    """All of them, in order; returns the first."""
    told: dict[str, Any] = {name: score.model_dump(mode="json") for name, score in scores.items()}
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return next(iter(scores.values()))
