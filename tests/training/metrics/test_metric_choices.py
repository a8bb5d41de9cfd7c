from __future__ import annotations

import math

import pytest

from spark_jobs.errors import DataError
from training.metrics.choices import choice_scores


def shares(likelihoods: list[list[float]], choices: list[list[str]], gold: list[int]) -> list[float]:
    return [score.value for score in choice_scores(likelihoods, choices, gold).values()]


@pytest.mark.parametrize(("gold", "raw", "by_character", "by_byte"), [(0, 1, 0, 0), (1, 0, 1, 1), (2, 0, 0, 0)])
def test_length_decides_which_choice_is_taken(gold: int, raw: int, by_character: int, by_byte: int) -> None:
    """Nats a character -2, -0.8, -1.125; a byte -2, -0.8, -0.9: the short one is the likeliest as it stands."""
    likelihoods, choices = [[-6.0, -8.0, -9.0]], [["yes", "definitely", "naïvetés"]]
    assert shares(likelihoods, choices, [gold]) == [raw, by_character, by_byte]


def test_characters_and_bytes_can_disagree() -> None:
    """Five characters of six bytes: -0.6 a character and -0.5 a byte, against -0.55 of five ASCII letters."""
    assert shares([[-3.0, -2.75]], [["naïve", "plain"]], [0]) == [0.0, 0.0, 1.0]


def test_first_of_equal_choices_is_taken() -> None:
    assert shares([[-1.0, -1.0]], [["ab", "cd"]], [0]) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("nats", [[math.nan, math.nan], [-3.0, math.nan], [math.nan, -1.0], [-math.inf, -1.0]])
@pytest.mark.parametrize("gold", [0, 1])
def test_likelihood_that_is_not_finite_is_never_right(nats: list[float], gold: int) -> None:
    for score in choice_scores([nats, [-1.0, -2.0]], [["a", "b"]] * 2, [gold, 0]).values():
        assert score.value == 0.5
        assert (score.n, score.n_invalid) == (2, 1)


def test_empty_choice_is_refused() -> None:
    with pytest.raises(DataError, match="question 0 has an empty choice"):
        choice_scores([[-1.0, -2.0]], [["", "abc"]], [0])


@pytest.mark.parametrize(("nats", "gold"), [([-1.0], 0), ([-1.0, -2.0], 2), ([-1.0, -2.0], -1)])
def test_question_that_does_not_add_up_is_refused(nats: list[float], gold: int) -> None:
    with pytest.raises(DataError, match=f"question 0 has 2 choices, {len(nats)} likelihoods and answer {gold}"):
        choice_scores([nats], [["a", "b"]], [gold])
