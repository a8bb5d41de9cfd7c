"""Scores under slips of the keyboard, beside those of the rows as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spark_jobs.errors import RequestError
from training.finetune.score import check_noise


@pytest.mark.parametrize("kind", ["dialogue", "preference"])
def test_task_without_an_input_of_its_own_is_refused(kind: str) -> None:
    with pytest.raises(RequestError, match=f"noise_share: {kind} has no input apart"):
        check_noise(kind)


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
