"""Labels of texts, from rows to scores: encoding, the loss, a model that learns, what is refused and counted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from spark_jobs.errors import DataError, RequestError
from training.finetune.classification import Classification, MultiLabel
from training.finetune.examples import TaskMaterial, encode_rows, read_rows
from training.finetune.kinds import make_task
from training.finetune.task import Example, Unusable
from training.finetune_spec import TaskSpec
from training.loop_spec import LossSpec

FAST: dict[str, Any] = {
    "epochs": 12, "sequences_per_step": 8, "micro_batch": 4, "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.0},
    "schedule": {"kind": "constant", "warmup_share": 0.0}, "dropout": 0.0,
}  # fmt: skip
NOUNS, ENDS = ["cat", "dog", "sun", "moon"], ["runs", "sleeps", "sees"]


def colours(split: str = "train") -> list[dict[str, Any]]:
    """Sentences whose class is their colour."""
    return [
        {"text": f"the {size} {colour} {noun} {end}", "labels": [colour], "split": split}
        for colour in ("red", "blue")
        for size in (("big",) if split == "test" else ("small", "one"))
        for noun in NOUNS
        for end in ENDS
    ]


def output_of(logits: torch.Tensor) -> Any:
    return type("Output", (), {"logits": logits})()


def row(**fields: Any) -> dict[str, Any]:
    return {"id": "0" * 32, "text": "the cat", "pair": None, "labels": ["red"]} | fields


def test_classification_learns_a_rule_and_says_so_with_an_interval(workspace, bert) -> None:
    labelled = workspace.labelled("classification", colours() + colours("test"), ["red", "blue"])
    model = workspace.trained(labelled, bert, FAST)
    card = workspace.score(model, labelled, {})
    assert (card.metric, card.value, card.num_rows) == ("accuracy", 1.0, 24)
    assert 0.8 < card.low < 1.0
    loaded = AutoModelForSequenceClassification.from_pretrained(model.folder())
    assert loaded.config.id2label == {0: "blue", 1: "red"}
    scores = json.loads((Path(card.folder()) / "scores.json").read_text())
    assert list(scores)[:2] == ["accuracy", "macro_f1"]


def test_several_labels_are_learned_at_once(workspace, bert) -> None:
    rows = [
        {"text": f"{size} {colour} {noun}", "labels": [size, colour] if size else [colour], "split": split}
        for size in ("big", "")
        for colour in ("red", "blue", "green")
        for split, nouns in (("train", NOUNS[:3]), ("test", NOUNS[3:]))
        for noun in nouns
    ]
    labelled = workspace.labelled("multi_label", rows, ["big", "red", "blue", "green"])
    spec = FAST | {"task": {"kind": "multi_label"}, "epochs": 80, "sequences_per_step": 6}
    card = workspace.score(workspace.trained(labelled, bert, spec), labelled, {"task": {"kind": "multi_label"}})
    assert (card.metric, card.value) == ("micro_f1", 1.0)


def test_loss_is_the_sum_of_cross_entropies_over_labels(make_tokenizer) -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
    one = Classification(TaskSpec(), make_tokenizer(), ["red", "blue", "green"])
    inputs = one.collate([*one.encode(row(labels=["green"])), *one.encode(row(labels=["blue"]))])
    assert float(one.loss(output_of(logits), inputs)) == pytest.approx(
        float(F.cross_entropy(logits, torch.tensor([2, 1]), reduction="sum")), abs=1e-12
    )
    many = MultiLabel(TaskSpec(kind="multi_label"), make_tokenizer(), ["red", "blue", "green"])
    inputs = many.collate([*many.encode(row(labels=["red", "green"])), *many.encode(row(labels=[]))])
    wanted = torch.tensor([[1.0, 0, 1], [0, 0, 0]], dtype=torch.float64)
    assert float(many.loss(output_of(logits), inputs)) == pytest.approx(
        float(F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")), abs=1e-12
    )
    assert (inputs.targets_BS != -100).sum() == 6  # what the step divides by: labels, not texts


def test_label_smoothing_reaches_the_loss(make_tokenizer) -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    task = Classification(TaskSpec(), make_tokenizer(), ["red", "blue", "green"])
    task.loss_spec = LossSpec(label_smoothing=0.2)
    wanted = F.cross_entropy(logits, torch.tensor([2]), reduction="sum", label_smoothing=0.2)
    assert float(task.loss(output_of(logits), task.collate(task.encode(row(labels=["green"]))))) == pytest.approx(
        float(wanted), abs=1e-12
    )


def test_padding_is_masked_by_place_even_where_its_token_stands_in_the_text(make_tokenizer) -> None:
    task = Classification(TaskSpec(), make_tokenizer(), ["red", "blue"])
    short, long = task.encode(row(text="[PAD] cat"))[0], task.encode(row(text="the big red cat"))[0]
    assert short.features["input_ids"][1] == 0  # the padding token, as text
    mask = task.collate([short, long]).model["attention_mask"]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": " \n"}, "empty_text"),
        ({"labels": ["purple"]}, "unknown_label"),
        ({"labels": []}, "not_one_label"),
        ({"labels": ["red", "blue"]}, "not_one_label"),
    ],
)
def test_row_that_teaches_nothing_is_counted_by_reason(make_tokenizer, fields: dict[str, Any], reason: str) -> None:
    task = Classification(TaskSpec(), make_tokenizer(), ["red", "blue"])
    with pytest.raises(Unusable, match=reason):
        task.encode(row(**fields))
    examples, unusable = encode_rows(task, iter([row(), row(**fields)]))
    assert (len(examples), dict(unusable)) == (1, {reason: 1})


def test_two_texts_are_cut_to_the_longest_allowed_and_told_apart(make_tokenizer) -> None:
    task = Classification(TaskSpec(max_length=10), make_tokenizer(), ["red", "blue"])
    features = task.encode(row(text="the cat", pair="a " * 20))[0].features
    assert len(features["input_ids"]) == 10
    assert features["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_single_class_is_refused_before_training(make_tokenizer) -> None:
    with pytest.raises(DataError, match="at least two classes"):
        make_task(TaskSpec(), make_tokenizer(), ["red"], BertConfig())


@pytest.mark.parametrize(
    ("rows", "spec", "error", "message"),
    [
        (colours(), {"task": {"kind": "multi_label"}}, RequestError, "is for classification, task.kind is multi_label"),
        (colours()[:4], {"sequences_per_step": 8}, RequestError, "has 4 rows to train on, one step wants 8"),
        (colours(), {"early_stop": {"watch": "heldout"}}, RequestError, "no validation split"),
        ([{"text": "  ", "labels": ["red"]} for _ in range(8)], {}, DataError, r"no row of split train .*8 empty_text"),
    ],
)
def test_request_that_cannot_succeed_is_refused_with_the_next_move(
    workspace, bert, rows: list[dict[str, Any]], spec: dict[str, Any], error: type[Exception], message: str
) -> None:
    rows = [fields | {"id": f"{number:032x}"} for number, fields in enumerate(rows)]
    labelled = workspace.labelled("classification", rows, ["red", "blue"])
    with pytest.raises(error, match=message):
        workspace.finetune(labelled, bert, FAST | spec)


def test_rows_that_cannot_be_read_count_as_wrong(workspace, bert) -> None:
    rows = colours() + colours("test")[:11] + [{"text": " ", "labels": ["red"], "split": "test"}]
    labelled = workspace.labelled("classification", rows, ["red", "blue"])
    card = workspace.score(workspace.trained(labelled, bert, FAST), labelled, {})
    assert card.value == pytest.approx(11 / 12)
    assert card.counts["unusable.empty_text"] == 1


def test_scores_do_not_depend_on_the_batch_size(workspace, bert) -> None:
    labelled = workspace.labelled("classification", colours() + colours("test"), ["red", "blue"])
    model = workspace.trained(labelled, bert, FAST | {"epochs": 1})
    tables = [
        (Path(workspace.score(model, labelled, {"batch_size": size}).folder()) / "scores.json").read_text()
        for size in (1, 5, 32)
    ]
    assert tables[0] == tables[1] == tables[2]


def test_ranks_see_every_example_once_an_epoch_and_share_the_long_ones(workspace, make_tokenizer) -> None:
    task = Classification(TaskSpec(), make_tokenizer(), ["red", "blue"])
    texts = [" ".join(["cat"] * (1 + number % 11)) for number in range(30)]
    examples = [
        Example(str(number), {"input_ids": [1] * len(text), "label": 0}, len(text.split()))
        for number, text in enumerate(texts)
    ]
    material = TaskMaterial(task, examples, seed=3, per_step=6, num_ranks=2)
    seen = [material.example_at(position) for position in range(60)]
    assert sorted(seen[:30]) == sorted(seen[30:]) == list(range(30))
    assert seen[:30] != seen[30:]
    again = TaskMaterial(task, examples, seed=3, per_step=6, num_ranks=2)
    assert [again.example_at(position) for position in range(45, 60)] == seen[45:]
    for step in range(5):
        shares = [[examples[i].num_tokens for i in seen[at : at + 3]] for at in (6 * step, 6 * step + 3)]
        assert all(a >= b for a, b in zip(*shares, strict=True))
        assert all(share == sorted(share, reverse=True) for share in shares)


def test_two_ranks_learn_what_one_does(workspace, bert) -> None:
    labelled = workspace.labelled("classification", colours(), ["red", "blue"])
    losses = []
    for ranks in (1, 2):
        spec = FAST | {"ranks": ranks, "epochs": 3, "method": {"kind": "lora", "rank": 4}}
        checkpoint = workspace.finetune(labelled, bert, spec)
        curve = (Path(checkpoint.folder()) / "curve.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in curve])
    assert np.allclose(losses[0], losses[1], atol=1e-5)
    assert losses[0][-1] < losses[0][0] < 1.0 + math.log(2)


def test_rows_are_read_in_order_of_id_and_only_of_their_split(workspace) -> None:
    labelled = workspace.labelled("classification", colours() + colours("test"), ["red", "blue"])
    ids = [found["id"] for found in read_rows(labelled, "test")]
    assert ids == sorted(ids)
    assert len(ids) == labelled.num_test == 24
    assert [found["id"] for found in read_rows(labelled, "test", 5)] == ids[:5]


def test_exported_tokenizer_is_the_base_s(workspace, bert) -> None:
    labelled = workspace.labelled("classification", colours(), ["red", "blue"])
    model = workspace.trained(labelled, bert, FAST | {"epochs": 1})
    texts = ["the big red cat", "who sees ?"]
    ours, theirs = (AutoTokenizer.from_pretrained(folder.folder())(texts)["input_ids"] for folder in (model, bert))
    assert ours == theirs
