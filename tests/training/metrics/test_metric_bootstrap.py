from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.errors import DataError
from training.metrics.bootstrap import (
    Bootstrap,
    Resampled,
    drawn,
    mean_of_column,
    mean_scores,
    paired_difference,
    percentiles,
    resample,
    resample_sums,
)


def sums_of(values: list[float] | np.ndarray, bootstrap: Bootstrap) -> Resampled:
    return resample_sums(np.asarray(values, np.float64)[:, None], bootstrap)


@pytest.mark.parametrize(("right", "wrong"), [(50, 50), (90, 10), (300, 100)])
def test_bootstrap_deviation_of_a_proportion_is_that_of_the_binomial(right: int, wrong: int) -> None:
    """sqrt(p (1 - p) / n), here within 5 %: 0.05 for 50 of 100, and not a root of the replicates smaller (0.0016)."""
    n = right + wrong
    shares = sums_of([1.0] * right + [0.0] * wrong, Bootstrap(replicates=4000)).replicates[:, 0] / n
    assert shares.std(ddof=1) == pytest.approx(np.sqrt(right / n * wrong / n / n), rel=0.05)


@settings(deadline=None, max_examples=50)
@given(first=st.integers(0, 30), size=st.integers(1, 20), n=st.integers(1, 40), seed=st.integers(0, 5))
def test_replicate_is_the_same_whoever_draws_it(first: int, size: int, n: int, seed: int) -> None:
    """Replicates of a run of any length begin with those of a shorter one, and each can be drawn by itself."""
    values = np.linspace(0, 1, n)
    whole = sums_of(values, Bootstrap(replicates=first + size, seed=seed)).replicates[:, 0]
    alone = [drawn(n, seed, r) @ values for r in range(first, first + size)]
    assert whole[first:].tolist() == alone
    assert sums_of(values, Bootstrap(replicates=size, seed=seed)).replicates[:, 0].tolist() == whole[:size].tolist()


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 100), seed=st.integers(0, 9), replicate=st.integers(0, 9))
def test_draw_has_as_many_items_as_there_are(n: int, seed: int, replicate: int) -> None:
    counts = drawn(n, seed, replicate)
    assert counts.shape == (n,)
    assert counts.sum() == n


def test_draws_differ_between_seeds_and_replicates() -> None:
    draws = {tuple(drawn(20, seed, r)) for seed in range(5) for r in range(20)}
    assert len(draws) == 100


def test_sums_of_a_draw_are_those_of_the_items_in_it() -> None:
    """Ratio of sums, items weighing by their size: not the mean of ratios."""
    stats_NS = np.array([[1.0, 10.0], [8.0, 10.0], [0.0, 80.0]])
    resampled = resample_sums(stats_NS, Bootstrap(replicates=50, seed=3))
    for r in range(50):
        items = np.repeat(np.arange(3), drawn(3, 3, r))
        assert resampled.replicates[r] == pytest.approx(stats_NS[items].sum(0))
    assert resampled.whole.tolist() == [9.0, 100.0]


def test_paired_difference_of_two_models_on_the_same_items() -> None:
    """Of 200 items A has 150 right and B 142, 10 only A and 2 only B.

    Unpaired the same counts say nothing (z-test p = 0.37, and an interval over 0); paired the interval is 0.010 to 0.075.
    """
    ours = np.r_[np.ones(150), np.zeros(50)]
    theirs = ours.copy()
    theirs[:10], theirs[150:152] = 0, 1
    bootstrap = Bootstrap(replicates=2000)
    difference = paired_difference(sums_of(ours, bootstrap), sums_of(theirs, bootstrap), mean_of_column(0, 200))
    assert difference.value == pytest.approx(0.04)
    assert (difference.low, difference.high) == pytest.approx((0.010, 0.075), abs=0.003)
    assert difference.standard_error == pytest.approx(np.sqrt((12 / 200 - 0.04**2) / 200), rel=0.05)
    assert 0.005 < difference.p < 0.025
    shuffled = np.random.default_rng(0).permutation(theirs)
    unpaired = paired_difference(sums_of(ours, bootstrap), sums_of(shuffled, bootstrap), mean_of_column(0, 200))
    assert unpaired.low < 0 < unpaired.high


def test_paired_difference_of_a_model_with_itself_is_nothing() -> None:
    resampled = sums_of([1.0, 0.0, 1.0, 1.0], Bootstrap(replicates=99))
    difference = paired_difference(resampled, resampled, mean_of_column(0, 4))
    assert (difference.value, difference.low, difference.high, difference.p) == (0.0, 0.0, 0.0, 1.0)


def test_p_of_a_difference_is_never_zero() -> None:
    bootstrap = Bootstrap(replicates=99)
    better, worse = sums_of([1.0] * 5, bootstrap), sums_of([0.0] * 5, bootstrap)
    assert paired_difference(better, worse, mean_of_column(0, 5)).p == pytest.approx(1 / 100)


@pytest.mark.parametrize("other", [Bootstrap(replicates=10, seed=1), Bootstrap(replicates=11)])
def test_pairing_of_other_draws_is_refused(other: Bootstrap) -> None:
    ours = sums_of([1.0, 0.0], Bootstrap(replicates=10))
    with pytest.raises(DataError, match="same draws of the same items"):
        paired_difference(ours, sums_of([1.0, 0.0], other), mean_of_column(0, 2))


def test_pairing_of_other_items_is_refused() -> None:
    bootstrap = Bootstrap(replicates=10)
    with pytest.raises(DataError, match=r"got 2 items .* and 3"):
        paired_difference(sums_of([1.0, 0.0], bootstrap), sums_of([1.0, 0.0, 1.0], bootstrap), mean_of_column(0, 2))


def test_replicates_without_a_value_are_left_out_of_the_interval() -> None:
    assert percentiles(np.array([np.nan, 1.0, np.nan, 3.0])) == pytest.approx((1.05, 2.95))
    assert np.isnan(percentiles(np.array([np.nan, np.nan]))).all()


def test_percentiles_of_known_replicates() -> None:
    assert percentiles(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))


def test_mean_of_no_items_is_undefined() -> None:
    score = mean_scores({"length": np.empty(0)}, Bootstrap(replicates=5), 0, "")["length"]
    assert score.n == 0
    assert np.isnan([score.value, score.low, score.high]).all()


def test_statistic_sees_each_draw_once() -> None:
    """A metric that is no sum, the highest item of a draw, goes through the same draws."""
    values = np.array([0.0, 5.0, 2.0])
    resampled = resample(3, lambda counts: np.array([values[counts > 0].max()]), Bootstrap(replicates=20, seed=1))
    expected = [values[drawn(3, 1, r) > 0].max() for r in range(20)]
    assert resampled.replicates[:, 0].tolist() == expected
    assert resampled.whole.tolist() == [5.0]


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """100 samples of 60 from an exponential of mean 1: 95 % less what a percentile interval of 60 skewed items loses."""
    rng = np.random.default_rng(7)
    bootstrap = Bootstrap(replicates=200)
    covered = 0
    for _ in range(100):
        low, high = percentiles(sums_of(rng.exponential(size=60), bootstrap).replicates[:, 0] / 60)
        covered += low <= 1.0 <= high
    assert 0.87 <= covered / 100 <= 0.99
