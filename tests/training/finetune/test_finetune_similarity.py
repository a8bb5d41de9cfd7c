"""Numbers for texts and pairs: the unit they come back in, the loss, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertConfig

from spark_jobs.errors import DataError
from training.finetune.similarity import Regression, Similarity
from training.finetune.task import Unusable
from training.finetune_spec import TaskSpec

FAST: dict[str, Any] = {
    "epochs": 30, "ranks": 1, "sequences_per_step": 9, "micro_batch": 9, "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.0},
    "schedule": {"kind": "constant", "warmup_share": 0.0}, "dropout": 0.0,
}  # fmt: skip
SIZES = {"one": 100.0, "two": 200.0, "three": 300.0}
NOUNS = ["cat", "dog", "sun", "moon", "red", "blue", "green", "big", "small"]


def row(**fields: Any) -> dict[str, Any]:
    return {"id": "0" * 32, "text": "the cat", "pair": "a dog", "value": 1.0} | fields


def regression(make_tokenizer: Any, values: tuple[float, ...]) -> tuple[Regression, Any, list[Any]]:
    """A task that has measured `values`, a stand-in for its model's configuration, and its examples."""
    task = Regression(TaskSpec(kind="regression"), make_tokenizer())
    model = torch.nn.Linear(1, 1)
    model.config = BertConfig()
    examples = [example for value in values for example in task.encode(row(value=value))]
    return task, model, task.prepare(model, examples, torch.device("cpu"))


def output_of(logits: torch.Tensor) -> Any:
    return type("Output", (), {"logits": logits})()


def test_values_in_hundreds_are_learned_and_come_back_in_their_unit(workspace, bert) -> None:
    """With a rate of 1e-2 over 90 steps no weight of a head could reach 100 by itself."""
    rows = [{"text": f"{size} {noun}", "value": value} for size, value in SIZES.items() for noun in NOUNS]
    tests = [{"text": f"{size} the {noun}", "value": value, "split": "test"} for size, value in SIZES.items() for noun in NOUNS]  # fmt: skip
    labelled = workspace.labelled("regression", rows + tests)
    spec = FAST | {"task": {"kind": "regression"}}
    model = workspace.trained(labelled, bert, spec)
    config = AutoConfig.from_pretrained(model.folder())
    assert (config.value_mean, config.value_deviation) == pytest.approx((200.0, np.std([100.0, 200.0, 300.0])))
    card = workspace.score(model, labelled, {"task": {"kind": "regression"}})
    scores = json.loads((Path(card.folder()) / "scores.json").read_text())
    assert list(scores) == ["pearson", "spearman", "mse", "mae", "r2"]
    assert card.metric == "pearson"
    assert card.value > 0.95
    assert scores["mae"]["value"] < 40


def test_loss_is_the_sum_of_squares_in_deviations(make_tokenizer) -> None:
    task, _, examples = regression(make_tokenizer, (10.0, 20.0, 30.0, 40.0))
    deviation = math.sqrt(125.0)
    logits = torch.tensor([[0.0], [0.0], [1.0], [-1.0]], dtype=torch.float64)
    expected = (15 / deviation) ** 2 + (5 / deviation) ** 2 + (1 - 5 / deviation) ** 2 + (-1 - 15 / deviation) ** 2
    assert float(task.loss(output_of(logits), task.collate(examples))) == pytest.approx(expected, abs=1e-12)


def test_mean_is_that_of_the_first_examples_whatever_is_prepared_later(make_tokenizer) -> None:
    task, model, _ = regression(make_tokenizer, (1.0, 3.0))
    task.prepare(model, task.encode(row(value=1000.0)), torch.device("cpu"))
    assert (model.config.value_mean, model.config.value_deviation) == (2.0, 1.0)


@pytest.mark.parametrize("values", [(2.5, 2.5, 2.5), (2.5,)])
def test_one_value_only_is_refused(make_tokenizer, values: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"rows of split train have the value 2\.5"):
        regression(make_tokenizer, values)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "  "}, "empty_text"),
        ({"pair": ""}, "empty_pair"),
        ({"pair": None}, "empty_pair"),
        ({"value": None}, "no_value"),
        ({"value": math.nan}, "no_value"),
        ({"value": math.inf}, "no_value"),
    ],
)
def test_row_without_two_texts_or_a_number_is_named(make_tokenizer, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        Similarity(TaskSpec(kind="similarity"), make_tokenizer()).encode(row(**fields))


def test_missing_prediction_leaves_similarity_undefined(make_tokenizer) -> None:
    """Left out, it would help a model that failed."""
    task = Similarity(TaskSpec(kind="similarity"), make_tokenizer())
    rows = [row(id=str(i), value=float(i)) for i in range(4)]
    found = {str(i): [{"value": float(i)}] for i in range(4)}
    scores = task.score(rows, found, 0)
    assert next(iter(scores)) == "spearman"
    assert scores["spearman"].value == pytest.approx(1.0)
    assert math.isnan(task.score(rows, found | {"3": []}, 0)["spearman"].value)
