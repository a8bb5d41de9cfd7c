from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap
from training.metrics.likelihood import negative_log_likelihood, perplexity
from training.metrics.logits import softmax

ONE = Bootstrap(replicates=1)


def test_perplexity_weighs_documents_by_their_tokens() -> None:
    """1 token at 4 nats and 9 at 1: exp(13 / 10). Mean of means would be exp(2.5), mean of perplexities 28.7."""
    score = perplexity([4.0, 9.0], [1, 9], ONE)
    assert score.value == pytest.approx(math.exp(1.3))
    assert score.n == 2
    assert "weight:token" in score.signature


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(st.floats(0, 50), st.integers(1, 20)), min_size=1, max_size=12), data=st.data())
def test_perplexity_does_not_depend_on_order_or_on_how_documents_are_batched(
    rows: list[tuple[float, int]], data: st.DataObject
) -> None:
    nats, tokens = zip(*data.draw(st.permutations(rows)), strict=True)
    cut = data.draw(st.integers(0, len(rows)))
    parts = [part for part in (slice(0, cut), slice(cut, None)) if tokens[part]]
    batched = perplexity([sum(nats[p]) for p in parts], [sum(tokens[p]) for p in parts], ONE).value
    assert perplexity(nats, tokens, ONE).value == pytest.approx(batched)
    assert batched == pytest.approx(math.exp(sum(n for n, _ in rows) / sum(t for _, t in rows)))
    assert batched >= 1


def test_certain_tokens_have_perplexity_one() -> None:
    score = perplexity([0.0, 0.0], [3, 5], Bootstrap(replicates=10))
    assert (score.value, score.low, score.high) == (1.0, 1.0, 1.0)


def test_nats_that_are_not_finite_leave_no_perplexity() -> None:
    score = perplexity([1.0, math.nan, math.inf], [1, 1, 1], Bootstrap(replicates=20))
    assert math.isnan(score.value)
    assert math.isnan(score.low)
    assert (score.n, score.n_invalid) == (3, 2)


def test_perplexity_of_no_tokens_is_undefined() -> None:
    assert math.isnan(perplexity([], [], ONE).value)
    assert math.isnan(perplexity([0.0], [0], ONE).value)
    with pytest.raises(DataError, match="document 0 has -1 tokens"):
        perplexity([0.0], [-1], ONE)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(st.lists(st.floats(-8, 8), min_size=3, max_size=3), st.integers(0, 2)), min_size=1))
def test_nats_of_classes_agree_with_scikit_learn(rows: list[tuple[list[float], int]]) -> None:
    logits, gold = np.array([x for x, _ in rows]), [y for _, y in rows]
    expected = log_loss(gold, softmax(logits), labels=[0, 1, 2])
    assert negative_log_likelihood(logits, gold, ONE).value == pytest.approx(expected)


def test_nats_stay_finite_where_the_probability_is_zero() -> None:
    assert negative_log_likelihood(np.array([[0.0, 2000.0]]), [0], ONE).value == 2000.0


def test_class_that_is_no_column_is_refused() -> None:
    with pytest.raises(DataError, match="gold classes from -1 to 0 for 2 columns"):
        negative_log_likelihood(np.zeros((2, 2)), [-1, 0], ONE)


def test_logits_that_are_not_finite_leave_no_likelihood() -> None:
    score = negative_log_likelihood(np.array([[0.0, 1.0], [0.0, np.inf]]), [0, 1], ONE)
    assert math.isnan(score.value)
    assert score.n_invalid == 1
