"""Scores under slips of the keyboard: what moves, what stays, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.errors import RequestError
from training.finetune.robustness import check_noise, disturbed

TEXT = "the big red cat sees the small blue dog"


def row(**fields: Any) -> dict[str, Any]:
    return {"id": "7" * 32, "text": TEXT, "pair": None, "spans": None, "tokens": None} | fields


def test_same_row_and_seed_give_the_same_slips_and_another_seed_others() -> None:
    first = disturbed(row(), 0.3, 0)
    assert first == disturbed(row(), 0.3, 0) != disturbed(row(), 0.3, 1)
    assert first["text"] != TEXT
    assert disturbed(row(), 0.0, 0)["text"] == TEXT


def test_marked_arguments_stay_whole_where_the_text_around_them_moves() -> None:
    spans = [{"start": 12, "end": 15, "label": "e1"}, {"start": 36, "end": 39, "label": "e2"}]
    for seed in range(20):
        moved = disturbed(row(spans=spans), 0.5, seed)
        assert [moved["text"][s["start"] : s["end"]] for s in moved["spans"]] == ["cat", "dog"]


def test_answers_in_a_context_keep_their_places_because_only_the_question_is_disturbed() -> None:
    spans = [{"start": 4, "end": 7, "label": "sun"}]
    moved = disturbed(row(pair="the sun", spans=spans), 0.5, 3)
    assert (moved["pair"], moved["spans"]) == ("the sun", spans)
    assert moved["text"] != TEXT


def test_words_with_tags_stay_as_many() -> None:
    words = TEXT.split()
    moved = disturbed(row(tokens=words), 0.5, 1)["tokens"]
    assert len(moved) == len(words)
    assert moved != words
    assert all(moved)


@pytest.mark.parametrize("kind", ["dialogue", "preference"])
def test_task_without_an_input_of_its_own_is_refused(kind: str) -> None:
    check_noise(kind, 0.0)
    with pytest.raises(RequestError, match=f"noise_share 0.1: {kind} has no input apart"):
        check_noise(kind, 0.1)


def test_scorecard_holds_both_scores(workspace: Any, bert: Any) -> None:
    rows = [
        {"text": f"the {colour} {noun} {end}", "labels": [colour], "split": split}
        for colour in ("red", "blue")
        for split, nouns in (("train", ("cat", "sun")), ("test", ("dog", "moon")))
        for noun in nouns
        for end in ("runs", "sleeps", "sees")
    ]
    labelled = workspace.labelled("classification", rows, ["red", "blue"])
    spec = {
        "epochs": 15,
        "sequences_per_step": 6,
        "micro_batch": 6,
        "optimizer": {"learning_rate": 1e-2},
        "dropout": 0.0,
    }
    card = workspace.score(workspace.trained(labelled, bert, spec), labelled, {"noise_share": 0.9})
    scores = json.loads((Path(card.folder()) / "scores.json").read_text())
    assert scores["accuracy"]["value"] == 1.0
    assert scores["noisy/accuracy"]["value"] < 1.0  # the colour's letters are mostly gone
    assert scores["noisy/accuracy"]["signature"].startswith("noise:0.9|")
