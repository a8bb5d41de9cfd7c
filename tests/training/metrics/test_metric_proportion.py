from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from spark_jobs.errors import DataError
from training.metrics.mcnemar import EXACT_BELOW, mcnemar, mcnemar_p
from training.metrics.proportion import proportion, wilson_interval


@pytest.mark.parametrize(("only_ours", "only_theirs", "p"), [
    (10, 2, 0.03857), (6, 0, 0.03125), (5, 0, 0.0625), (25, 10, 0.01796), (3, 3, 1.0), (0, 0, 1.0), (13, 13, 1.0),
])  # fmt: skip
def test_mcnemar_of_known_counts(only_ours: int, only_theirs: int, p: float) -> None:
    assert mcnemar_p(only_ours, only_theirs) == pytest.approx(p, abs=1e-5)
    assert mcnemar_p(only_theirs, only_ours) == mcnemar_p(only_ours, only_theirs)


@settings(deadline=None, max_examples=50)
@given(b=st.integers(0, 60), c=st.integers(0, 60))
def test_mcnemar_agrees_with_scipy(b: int, c: int) -> None:
    if b + c == 0:
        expected = 1.0
    elif b + c < EXACT_BELOW:
        expected = binomtest(b, b + c, 0.5).pvalue
    else:
        expected = chi2.sf(max(abs(b - c) - 1, 0) ** 2 / (b + c), 1)
    assert mcnemar_p(b, c) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_of_answers_counts_those_that_only_one_has_right() -> None:
    """150 right of 200 against 142: counts alone give p 0.37, the 10 and 2 that differ 0.0386."""
    ours = [True] * 150 + [False] * 50
    theirs = [False] * 10 + [True] * 140 + [True] * 2 + [False] * 48
    assert mcnemar(ours, theirs) == pytest.approx(0.03857, abs=1e-5)
    shared = (150 + 142) / 400
    z = (150 - 142) / 200 / math.sqrt(shared * (1 - shared) * 2 / 200)
    assert math.erfc(z / math.sqrt(2)) == pytest.approx(0.368, abs=1e-3)


def test_mcnemar_of_unequal_lists_is_refused() -> None:
    with pytest.raises(DataError, match="2 answers of one model and 1 of the other"):
        mcnemar([True, False], [True])


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 400), data=st.data())
def test_wilson_interval_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(hits, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= hits / n <= high <= 1


def test_proportion_of_eight_in_ten() -> None:
    score = proportion("accuracy", [True] * 8 + [False] * 2, 1)
    assert (score.value, score.n, score.n_invalid) == (0.8, 10, 1)
    assert (score.low, score.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_proportion_of_nothing_is_undefined() -> None:
    score = proportion("accuracy", [])
    assert math.isnan(score.value)
    assert math.isnan(score.low)
