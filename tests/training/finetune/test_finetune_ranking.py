"""Candidates of queries: a cross-encoder that learns which fit, its loss, its scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from training.finetune.ranking import Ranking
from training.finetune.task import Unusable
from training.finetune_spec import TaskSpec

FAST: dict[str, Any] = {
    "epochs": 10, "ranks": 1, "sequences_per_step": 12, "micro_batch": 12, "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.0},
    "schedule": {"kind": "constant", "warmup_share": 0.0}, "dropout": 0.0, "task": {"kind": "ranking"},
}  # fmt: skip
NOUNS = ["cat", "dog", "sun"]


def row(**fields: Any) -> dict[str, Any]:
    return {"id": "0" * 32, "text": "the cat", "pair": "a dog", "value": 1.0, "group": None} | fields


def test_red_candidates_are_found_to_be_clicked_under_a_query_not_seen(workspace, bert) -> None:
    rows = [
        {"text": f"{query} {noun}", "pair": f"{colour} {end}", "value": float(colour == "red"),
         "group": f"{query} {noun}", "split": "test" if noun == "sun" else "train"}
        for query in ("good", "bad") for noun in NOUNS for colour in ("red", "blue") for end in ("runs", "sleeps", "sees")
    ]  # fmt: skip
    labelled = workspace.labelled("ranking", rows)
    card = workspace.score(workspace.trained(labelled, bert, FAST), labelled, {"task": {"kind": "ranking"}})
    scores = json.loads((Path(card.folder()) / "scores.json").read_text())
    assert list(scores) == ["mrr", "ndcg@10", "recall@10", "auc"]
    assert (card.metric, card.value, scores["mrr"]["n"]) == ("mrr", 1.0, 2)
    assert scores["auc"]["value"] == 1.0


def test_loss_is_the_sum_of_binary_cross_entropies(make_tokenizer) -> None:
    task = Ranking(TaskSpec(kind="ranking"), make_tokenizer())
    values = (1.0, 0.0, 0.25)
    inputs = task.collate([example for value in values for example in task.encode(row(value=value))])
    logits = torch.tensor([0.3, -2.0, 1.5], dtype=torch.float64)
    expected = -sum(v * F.logsigmoid(x) + (1 - v) * F.logsigmoid(-x) for v, x in zip(values, logits, strict=True))
    output = type("Output", (), {"logits": logits[:, None]})()
    assert float(task.loss(output, inputs)) == pytest.approx(float(expected), abs=1e-12)
    assert inputs.targets_BS.numel() == 3


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": ""}, "empty_text"),
        ({"pair": " "}, "empty_pair"),
        ({"value": None}, "value_not_in_0_1"),
        ({"value": 3.0}, "value_not_in_0_1"),
        ({"value": math.nan}, "value_not_in_0_1"),
    ],
)
def test_row_that_is_no_judged_pair_is_named(make_tokenizer, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        Ranking(TaskSpec(kind="ranking"), make_tokenizer()).encode(row(**fields))


def test_scores_by_group_and_where_there_is_none_by_query(make_tokenizer) -> None:
    """The first query's click is second, the other's first; a candidate without a prediction makes its group 0."""
    task = Ranking(TaskSpec(kind="ranking"), make_tokenizer())
    rows = [
        row(id="a", value=0.0, group="x"), row(id="b", value=1.0, group="x", text="another text"),
        row(id="c", value=1.0, text="red"), row(id="d", value=0.0, text="red"),
    ]  # fmt: skip
    found = {"a": [{"logit": 2.0}], "b": [{"logit": 1.0}], "c": [{"logit": 5.0}], "d": [{"logit": -1.0}]}
    scores = task.score(rows, found, 0)
    assert scores["mrr"].value == pytest.approx(0.75)
    assert scores["auc"].value == pytest.approx(3 / 4)
    assert task.score(rows, found | {"d": []}, 0)["mrr"].value == pytest.approx(0.25)


def test_graded_relevance_has_no_auc(make_tokenizer) -> None:
    task = Ranking(TaskSpec(kind="ranking"), make_tokenizer())
    rows = [row(id="a", value=0.5, group="x"), row(id="b", value=1.0, group="x")]
    assert "auc" not in task.score(rows, {"a": [{"logit": 0.0}], "b": [{"logit": 1.0}]}, 0)
