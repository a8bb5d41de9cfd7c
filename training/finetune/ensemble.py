"""Several fine-tuned models as one: their probabilities averaged, or their weights.

Job score-ensemble: inputs model-0, model-1 ... and labelled; output a TaskScorecard of the averaged probabilities. A row that one
member cannot encode, or answers with a number that is not finite, has no answer.

Job average-models: inputs model-0, model-1 ...; output a ModelFolder with the mean of their weights, a uniform soup
(arXiv:2203.05482), as small and as fast as one of them. That it answers well is no law: it wants members that began at the same
weights and did not part far, and heads that began at different random ones may not have the same mean. Its score tells.

Shapes: M members, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spark_jobs.errors import DataError, RequestError
from spark_jobs.manifests import LabelledSet
from spark_jobs.requests import Outcome, Request
from training.ensemble_spec import AVERAGED
from training.finetune.examples import read_rows
from training.finetune.import_model import copy_folder
from training.finetune.main import make_task_of
from training.finetune.score import predict_rows, write_predictions, write_scores
from training.finetune.task import Prediction
from training.finetune_spec import ScoreTaskSpec, TaskKind
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.metrics.logits import best_labels, labels_above, softmax
from training.model_folder import load_model, weight_bytes
from training.processes import num_threads

NUMBERS = ("similarity", "regression")


def run(request: Request) -> Outcome:
    """The score-ensemble job. Raises: RequestError for a task whose predictions have no mean, DataError if the split is empty."""
    spec = ScoreTaskSpec.model_validate(request.spec)
    check_averaged(spec.task.kind)
    members = members_of(request)
    labelled = LabelledSet.load(input_uri(request, "labelled"))
    torch.set_num_threads(num_threads())
    rows = list(read_rows(labelled, spec.split, spec.max_rows))
    if not rows:
        raise DataError(f"labelled set {labelled.address} has no row of split {spec.split}: score another split")
    task = make_task_of(spec.task, labelled, members[0])
    found = [predict_rows(load_model(member), task, rows, spec.batch_size)[0] for member in members]
    predictions = averaged(found, spec, labelled.label_set)
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_predictions(rows, predictions, data / "predictions.parquet")
    main = write_scores(task.score(rows, predictions, spec.seed), data / "scores.json")
    fields = {
        "task": spec.task.kind, "model": " ".join(member.address for member in members), "metric": main.name,
        "value": main.value, "low": main.low, "high": main.high,
    }  # fmt: skip
    return Outcome(num_rows=len(rows), format="parquet", counts={"in": len(rows), "out": len(rows)}, fields=fields)


def check_averaged(kind: TaskKind) -> None:
    """Raises: RequestError where two answers have no mean that is an answer."""
    if kind not in AVERAGED:
        raise RequestError(
            f"ensemble with task.kind {kind}: its answers are texts or spans, which have no mean; average weights instead"
        )


def members_of(request: Request) -> list[ModelFolder]:
    """Inputs model-0, model-1 ... Raises: RequestError if they are fewer than two."""
    roles = sorted((role for role in request.inputs if role.startswith("model-")), key=lambda role: int(role[6:]))
    if len(roles) < 2:
        raise RequestError(f"job {request.job}: an ensemble wants two members or more, got {len(roles)}")
    return [ModelFolder.load(request.inputs[role]) for role in roles]


def averaged(
    members: Sequence[Mapping[str, list[Prediction]]], spec: ScoreTaskSpec, label_set: Sequence[str]
) -> dict[str, list[Prediction]]:
    """One prediction a row, in the form the task's own have; [] where a member has none."""
    found: dict[str, list[Prediction]] = {}
    for name in members[0]:
        told = [member[name] for member in members]
        found[name] = [_mean([one[0] for one in told], spec, label_set)] if all(told) else []
    return found


def _mean(told: Sequence[Prediction], spec: ScoreTaskSpec, label_set: Sequence[str]) -> Prediction:
    """Classes: mean of softmaxes. Labels and clicks: mean of sigmoids. Both are told as logits again. Numbers: mean."""
    kind = spec.task.kind
    if kind in NUMBERS:
        return {"value": float(np.mean([one["value"] for one in told]))}
    if kind == "ranking":
        (logit,) = _logits_of(np.mean([_sigmoid(np.array([one["logit"]])) for one in told], axis=0))
        return {"logit": float(logit)}
    logits_MC = np.array([one["logits"] for one in told], np.float64)
    if kind == "multi_label":
        logits_C = _logits_of(_sigmoid(logits_MC).mean(axis=0))
        cut = float(np.log(spec.task.threshold / (1 - spec.task.threshold)))
        (names,) = labels_above(logits_C[None], label_set, cut)
        return {"labels": None if names is None else sorted(names), "logits": logits_C.tolist()}
    with np.errstate(divide="ignore"):
        logits_C = np.maximum(np.log(softmax(logits_MC).mean(axis=0)), np.finfo(np.float32).min)
    (label,) = best_labels(logits_C[None], label_set)
    return {"label": label, "logits": logits_C.tolist()}


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """NaN where a logit is not finite: no member may answer for another."""
    with np.errstate(over="ignore"):
        probabilities: np.ndarray = np.where(np.isfinite(logits), 1 / (1 + np.exp(-logits)), np.nan)
    return probabilities


def _logits_of(probabilities: np.ndarray) -> np.ndarray:
    tiny = np.finfo(np.float64).tiny
    logits: np.ndarray = np.log(np.maximum(probabilities, tiny)) - np.log(np.maximum(1 - probabilities, tiny))
    return logits


def average_models(request: Request) -> Outcome:
    """The average-models job. Raises: RequestError if members have other tensors, shapes, labels or packing."""
    members = members_of(request)
    packed = [member for member in members if member.scheme != "dense"]
    if packed:
        raise RequestError(f"model {packed[0].address} is {packed[0].scheme}: only dense weights have a mean")
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    copy_folder(Path(members[0].folder()), data)
    weights = mean_of_weights(members)
    for path in data.glob("*.safetensors*"):  # shards too, and their index
        path.unlink()
    save_file(weights, data / "model.safetensors", metadata={"format": "pt"})
    fields = {
        "scheme": "dense", "num_parameters": members[0].num_parameters, "weight_bytes": weight_bytes(data), "effective_bits": 32.0,
    }  # fmt: skip
    return Outcome(num_rows=len(weights), format="safetensors", fields=fields)


def mean_of_weights(members: Sequence[ModelFolder]) -> dict[str, Tensor]:
    """By tensor, summed in float64 and given in the members' dtype. Raises: RequestError naming the first that differs."""
    first = weights_of(members[0])
    total = {name: tensor.double() for name, tensor in first.items()}
    for member in members[1:]:
        theirs = weights_of(member)
        differing = sorted(
            name for name in first.keys() | theirs.keys()
            if name not in first or name not in theirs or first[name].shape != theirs[name].shape
        )  # fmt: skip
        if differing:
            name = differing[0]
            shapes = [tuple(found[name].shape) if name in found else "none" for found in (first, theirs)]
            raise RequestError(
                f"weights of {members[0].address} and {member.address} have no mean: {name} is {shapes[0]} and {shapes[1]}; average "
                "models of one shape, or their probabilities"
            )
        for name, tensor in theirs.items():
            total[name] += tensor.double()
    return {name: (tensor / len(members)).to(first[name].dtype).contiguous() for name, tensor in total.items()}


def weights_of(member: ModelFolder) -> dict[str, Tensor]:
    files: dict[str, Any] = {}
    for path in sorted(Path(member.folder()).glob("*.safetensors")):
        files |= load_file(path)
    return files
