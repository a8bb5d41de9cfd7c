"""Several models as one: averaged probabilities, averaged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from spark_jobs.errors import RequestError
from training.finetune.ensemble import average_models, averaged, run, weights_of
from training.finetune_spec import ScoreTaskSpec
from training.manifests import ModelFolder, TaskScorecard

FAST: dict[str, Any] = {
    "epochs": 6, "sequences_per_step": 8, "micro_batch": 8, "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.0},
    "schedule": {"kind": "constant", "warmup_share": 0.0}, "dropout": 0.0, "ranks": 1,
}  # fmt: skip
LABELS = ("blue", "red")


def rows() -> list[dict[str, Any]]:
    return [
        {"text": f"the {size} {colour} {noun}", "labels": [colour], "split": split}
        for colour in LABELS
        for size, split in (("small", "train"), ("one", "train"), ("big", "test"))
        for noun in ("cat", "dog", "sun", "moon")
    ]


def classifier(seed: int, hidden_size: int = 16) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=46, hidden_size=hidden_size, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=0, id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
    )  # fmt: skip
    return BertForSequenceClassification(config)


def test_mean_of_probabilities_is_not_that_of_logits() -> None:
    """One member is sure (0.9990 of red), two lean to blue (0.6): red has (0.999 + 0.4 + 0.4) / 3 = 0.5997."""
    sure = {"a": [{"label": "red", "logits": [0.0, float(np.log(999.0))]}]}
    leaning = {"a": [{"label": "blue", "logits": [float(np.log(1.5)), 0.0]}]}
    (found,) = averaged([sure, leaning, leaning], ScoreTaskSpec(), LABELS)["a"]
    assert found["label"] == "red"
    assert np.exp(found["logits"]).tolist() == pytest.approx([1 - 1.799 / 3, 1.799 / 3], abs=1e-9)


@pytest.mark.parametrize("broken", [[], [{"label": None, "logits": [float("nan"), 0.0]}]])
def test_row_that_one_member_cannot_answer_has_no_answer(broken: list[Any]) -> None:
    good = {"a": [{"label": "red", "logits": [0.0, 1.0]}]}
    found = averaged([good, {"a": broken}], ScoreTaskSpec(), LABELS)["a"]
    assert not found or found[0]["label"] is None


def test_labels_are_given_from_the_mean_of_their_probabilities() -> None:
    members = [{"a": [{"labels": [], "logits": [float(np.log(p / (1 - p))), 3.0]}]} for p in (0.9, 0.2)]
    spec = ScoreTaskSpec.model_validate({"task": {"kind": "multi_label", "threshold": 0.54}})
    assert averaged(members, spec, LABELS)["a"][0]["labels"] == ["blue", "red"]
    strict = ScoreTaskSpec.model_validate({"task": {"kind": "multi_label", "threshold": 0.56}})
    assert averaged(members, strict, LABELS)["a"][0]["labels"] == ["red"]


def test_ensemble_is_scored_with_an_interval_and_its_mean_weights_are_a_model(workspace, bert) -> None:
    labelled = workspace.labelled("classification", rows(), LABELS)
    members = [workspace.trained(labelled, bert, FAST | {"seed": seed}) for seed in (0, 1)]
    inputs = {f"model-{number}": member for number, member in enumerate(members)}
    card = workspace._job(run, TaskScorecard, "score-ensemble", {}, inputs | {"labelled": labelled})
    assert (card.metric, card.value, card.num_rows) == ("accuracy", 1.0, 8)
    assert card.low < 1.0
    predictions = json.loads((Path(card.folder()) / "scores.json").read_text())
    assert predictions["accuracy"]["n"] == 8
    soup = workspace._job(average_models, ModelFolder, "average-models", {}, inputs)
    loaded = AutoModelForSequenceClassification.from_pretrained(soup.folder())
    whole = [weights_of(member) for member in members]
    for name, parameter in loaded.state_dict().items():
        if name in whole[0]:
            expected = ((whole[0][name].double() + whole[1][name].double()) / 2).float()
            assert torch.equal(parameter, expected), name
    assert workspace.score(soup, labelled, {}).num_rows == 8


def test_mean_of_equal_weights_is_the_same_bytes(workspace, make_tokenizer) -> None:
    member = workspace.model(classifier(0), make_tokenizer())
    inputs = {"model-0": member, "model-1": member, "model-2": member}
    soup = workspace._job(average_models, ModelFolder, "average-models", {}, inputs)
    ours, theirs = weights_of(soup), weights_of(member)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_of_other_shapes_are_refused_by_name(workspace, make_tokenizer) -> None:
    members = [workspace.model(classifier(0, size), make_tokenizer()) for size in (16, 24)]
    inputs = {f"model-{number}": member for number, member in enumerate(members)}
    with pytest.raises(RequestError, match=r"have no mean: bert\.embeddings\.LayerNorm\.bias is \(16,\) and \(24,\)"):
        workspace._job(average_models, ModelFolder, "average-models", {}, inputs)


def test_ensemble_of_texts_or_of_one_is_refused(workspace, make_tokenizer) -> None:
    member = workspace.model(classifier(0), make_tokenizer())
    labelled = workspace.labelled("summarization", [{"text": "a cat", "target": "cat"}])
    spec = {"task": {"kind": "summarization"}}
    inputs = {"model-0": member, "model-1": member, "labelled": labelled}
    with pytest.raises(RequestError, match="texts or spans, which have no mean"):
        workspace._job(run, TaskScorecard, "score-ensemble", spec, inputs)
    with pytest.raises(RequestError, match="two members or more, got 1"):
        workspace._job(average_models, ModelFolder, "average-models", {}, {"model-0": member})
