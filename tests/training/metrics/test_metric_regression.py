from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, drawn
from training.metrics.regression import regression_scores

ONE = Bootstrap(replicates=1)
VALUE = st.integers(-4, 4).map(float)
PAIRS = st.lists(st.tuples(VALUE, VALUE), min_size=2, max_size=25)


def test_scores_of_known_numbers() -> None:
    scores = regression_scores([1, 2, 3, 4], [1, 2, 3, 8], ONE)
    assert {name: score.value for name, score in scores.items()} == {
        "mse": 4.0,
        "mae": 1.0,
        "r2": pytest.approx(1 - 16 / 5),
        "pearson": pytest.approx(11 / math.sqrt(5 * 29)),
        "spearman": pytest.approx(1.0),
    }


def test_spearman_shares_ranks_among_ties() -> None:
    """Ranks 1.5 1.5 3 4 against 1 2 3 4: not the 1 of ties broken in file order."""
    scores = regression_scores([5, 5, 6, 7], [1, 2, 3, 4], ONE)
    assert scores["spearman"].value == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@settings(deadline=None, max_examples=50)
@given(pairs=PAIRS)
def test_scores_agree_with_scipy_and_scikit_learn(pairs: list[tuple[float, float]]) -> None:
    gold, predicted = (list(column) for column in zip(*pairs, strict=True))
    scores = regression_scores(gold, predicted, ONE)
    assert scores["mse"].value == pytest.approx(mean_squared_error(gold, predicted))
    assert scores["mae"].value == pytest.approx(mean_absolute_error(gold, predicted))
    if len(set(gold)) == 1:
        assert all(math.isnan(scores[name].value) for name in ("r2", "pearson", "spearman"))
        return
    assert scores["r2"].value == pytest.approx(r2_score(gold, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of a constant, and says NaN as we do
        assert scores["pearson"].value == pytest.approx(pearsonr(gold, predicted).statistic, nan_ok=True)
        assert scores["spearman"].value == pytest.approx(spearmanr(gold, predicted).statistic, nan_ok=True)


@settings(deadline=None, max_examples=50)
@given(pairs=PAIRS, data=st.data())
def test_scores_do_not_depend_on_the_order(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    moved = data.draw(st.permutations(pairs))
    before, after = (regression_scores(*zip(*rows, strict=True), ONE) for rows in (pairs, moved))
    for name, score in before.items():
        assert score.value == pytest.approx(after[name].value, nan_ok=True, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(gold=st.lists(VALUE, min_size=2, max_size=20, unique=True))
def test_perfect_numbers_have_the_best_scores(gold: list[float]) -> None:
    scores = regression_scores(gold, gold, ONE)
    assert (scores["mse"].value, scores["mae"].value, scores["r2"].value) == (0.0, 0.0, 1.0)
    assert scores["pearson"].value == pytest.approx(1.0)
    assert scores["spearman"].value == pytest.approx(1.0)


def test_correlations_of_replicates_are_those_of_the_drawn_items() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 6, 30).astype(float)
    predicted = gold + rng.integers(-3, 4, 30)
    bootstrap = Bootstrap(replicates=40, seed=2)
    scores = regression_scores(gold, predicted, bootstrap)
    draws = [np.repeat(np.arange(30), drawn(30, 2, r)) for r in range(40)]
    for name, function in (("pearson", pearsonr), ("spearman", spearmanr)):
        values = [function(gold[i], predicted[i]).statistic for i in draws]
        expected = np.quantile(values, [0.025, 0.975])
        assert (scores[name].low, scores[name].high) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("constant", [0.1, 1e8 + 0.1, -3.0])
def test_correlation_with_a_constant_is_undefined_and_not_noise(constant: float) -> None:
    scores = regression_scores([0.1, 0.2, 0.7], [constant] * 3, Bootstrap(replicates=50))
    assert math.isnan(scores["pearson"].value)
    assert math.isnan(scores["spearman"].value)
    assert math.isfinite(scores["r2"].value)


def test_draw_of_one_value_only_is_left_out_of_the_interval() -> None:
    """Of two items half the draws have one twice: no correlation there, and 1 in all others."""
    score = regression_scores([0.1, 0.3], [0.7, 0.9], Bootstrap(replicates=100))["pearson"]
    assert (score.low, score.high) == pytest.approx((1.0, 1.0))


def test_draw_of_a_constant_is_left_out_though_its_sums_are_rounded() -> None:
    """Eight of nine predictions are 0.3: a third of the draws has only these, and rounding leaves them some spread."""
    gold, predicted = np.arange(9) ** 2 / 7, [0.3] * 8 + [0.9]
    score = regression_scores(gold, predicted, Bootstrap(replicates=200))["pearson"]
    draws = [np.repeat(np.arange(9), drawn(9, 0, r)) for r in range(200)]
    values = [pearsonr(gold[i], np.array(predicted)[i]).statistic for i in draws if 8 in i and (i != 8).any()]
    assert (score.low, score.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_correlation_far_from_zero_keeps_its_digits() -> None:
    gold = np.arange(10.0)
    wave = np.sin(np.arange(10.0))
    near, far = (regression_scores(gold, wave + offset, ONE)["pearson"].value for offset in (0.0, 1e9))
    assert far == pytest.approx(near, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_number_that_is_not_finite_leaves_every_score_undefined(bad: float) -> None:
    """Left out, a model would gain by failing where it is hard."""
    for score in regression_scores([1, 2, 3], [1.0, 2.0, bad], Bootstrap(replicates=20)).values():
        assert math.isnan(score.value)
        assert math.isnan(score.low)
        assert (score.n, score.n_invalid) == (3, 1)


def test_gold_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="gold value nan of item 1"):
        regression_scores([1.0, math.nan], [1.0, 1.0], ONE)


def test_no_numbers_have_no_scores() -> None:
    assert all(math.isnan(score.value) for score in regression_scores([], [], ONE).values())
