from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from training.metrics.score import Score


def score(value: float) -> Score:
    return Score(name="f1", value=value, n=3, n_invalid=1, low=0.1, high=math.inf, signature="average:macro")


def test_score_without_a_value_goes_through_json_and_back() -> None:
    text = json.dumps(score(math.nan).model_dump(mode="json"), allow_nan=False)
    assert json.loads(text)["value"] is None
    read = Score.model_validate_json(text)
    assert math.isnan(read.value)
    assert math.isnan(read.high)
    assert (read.low, read.n, read.n_invalid) == (0.1, 3, 1)


def test_score_is_the_same_after_json() -> None:
    before = score(0.5).model_copy(update={"high": 0.75})
    assert Score.model_validate_json(before.model_dump_json()) == before


def test_undefined_score_is_never_the_better_one() -> None:
    assert not score(math.nan).value > score(0.0).value
    assert not score(math.nan).value >= score(math.nan).value


def test_score_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        score(0.5).value = 1.0  # type: ignore[misc]
