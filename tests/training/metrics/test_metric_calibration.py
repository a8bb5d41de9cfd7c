from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap
from training.metrics.calibration import adaptive_calibration_error, brier, calibration_error
from training.metrics.logits import softmax

ONE = Bootstrap(replicates=1)
ROWS = st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()), min_size=1, max_size=30)


def test_confidence_of_exactly_one_is_in_the_last_bin() -> None:
    """One bin of mean 0.975, half right: 0.475. Without the second text 0.025 x 1/2, with a bin of its own 0.525."""
    assert calibration_error([0.95, 1.0], [True, False], ONE).value == pytest.approx(0.475)


def test_confidence_of_exactly_zero_is_in_the_first_bin() -> None:
    assert calibration_error([0.0, 0.1], [True, False], ONE).value == pytest.approx((1 - 0.1) / 2)


@pytest.mark.parametrize(
    ("confidence", "bin_of"), [(0.3, 2), (0.1 + 0.2, 3), (0.7, 6), (0.6000000000000001, 6), (0.6, 5)]
)
def test_bins_end_with_their_upper_edge(confidence: float, bin_of: int) -> None:
    """A second text in the middle of a bin: the gaps of the two, of opposite sign, cancel only where they share it.

    0.1 + 0.2 is above 0.3, and so are edges made by adding steps of 0.1.
    """
    middles = (np.arange(10) + 0.5) / 10
    for other in range(10):
        together = abs((1 - confidence) + (0 - middles[other])) / 2
        apart = (abs(1 - confidence) + middles[other]) / 2
        value = calibration_error([confidence, middles[other]], [True, False], ONE).value
        assert value == pytest.approx(together if other == bin_of else apart)


@settings(deadline=None, max_examples=50)
@given(rows=ROWS, num_bins=st.integers(1, 12), data=st.data())
def test_errors_do_not_depend_on_the_order_and_are_within_bounds(
    rows: list[tuple[float, bool]], num_bins: int, data: st.DataObject
) -> None:
    moved = data.draw(st.permutations(rows))
    for error in (calibration_error, adaptive_calibration_error):
        before, after = (error(*zip(*r, strict=True), ONE, num_bins).value for r in (rows, moved))
        assert before == pytest.approx(after)
        assert 0 <= before <= 1
        confidence, right = (np.array(column, float) for column in zip(*rows, strict=True))
        assert before >= abs((right - confidence).mean()) - 1e-9  # one bin hides what many show


@settings(deadline=None, max_examples=50)
@given(rows=ROWS)
def test_errors_of_one_bin_are_the_distance_of_the_means(rows: list[tuple[float, bool]]) -> None:
    confidence, right = zip(*rows, strict=True)
    expected = abs(np.mean(right) - np.mean(confidence))
    assert calibration_error(confidence, right, ONE, 1).value == pytest.approx(expected)
    assert adaptive_calibration_error(confidence, right, ONE, 1).value == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=24, unique=True), data=st.data())
def test_adaptive_bins_hold_as_many_texts_each(values: list[float], data: st.DataObject) -> None:
    """Of confidences all different, four bins of a quarter of them: the plain definition."""
    values = values[: len(values) // 4 * 4]
    right = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    order = np.argsort(values)
    gaps = (np.array(right, float) - np.array(values))[order].reshape(4, -1)
    expected = abs(gaps.sum(1)).sum() / len(values)
    assert adaptive_calibration_error(values, right, ONE, 4).value == pytest.approx(expected, abs=1e-9)


def test_texts_of_one_confidence_are_no_evidence_of_their_order() -> None:
    """All 0.75, three of four right: calibrated, though in file order the bins of one text each would be off."""
    assert adaptive_calibration_error([0.75] * 4, [True, False, True, True], ONE, 4).value == pytest.approx(
        0, abs=1e-12
    )


def test_sure_and_right_has_no_error() -> None:
    assert calibration_error([1.0] * 5, [True] * 5, ONE).value == 0.0
    assert adaptive_calibration_error([1.0] * 5, [True] * 5, ONE).value == 0.0
    assert brier(np.eye(3), [0, 1, 2], ONE).value == 0.0


def test_sure_and_wrong_has_the_worst_score() -> None:
    assert calibration_error([1.0] * 5, [False] * 5, ONE).value == 1.0
    assert brier(np.eye(3), [1, 2, 0], ONE).value == 2.0


@settings(deadline=None, max_examples=50)
@given(logits=st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=2, max_size=10), data=st.data())
def test_brier_agrees_with_scikit_learn(logits: list[list[int]], data: st.DataObject) -> None:
    gold = data.draw(st.lists(st.integers(0, 2), min_size=len(logits), max_size=len(logits)))
    p_NC = softmax(np.array(logits, float))
    expected = brier_score_loss(gold, p_NC, labels=[0, 1, 2], scale_by_half=False)
    assert brier(p_NC, gold, ONE).value == pytest.approx(expected)


def test_probabilities_that_are_not_finite_leave_no_score() -> None:
    for score in (
        calibration_error([0.5, math.nan], [True, True], Bootstrap(replicates=20)),
        adaptive_calibration_error([0.5, math.nan], [True, True], Bootstrap(replicates=20)),
        brier(softmax(np.array([[0.0, 1.0], [np.nan, 0.0]])), [0, 1], Bootstrap(replicates=20)),
        brier(np.array([[0.5, 0.5], [np.inf, 0.0]]), [0, 1], Bootstrap(replicates=20)),
    ):
        assert math.isnan(score.value)
        assert math.isnan(score.low)
        assert (score.n, score.n_invalid) == (2, 1)


@pytest.mark.parametrize("bad", [-0.1, 1.1])
def test_confidence_that_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="of item 1 is no probability"):
        calibration_error([0.5, bad], [True, True], ONE)


def test_logits_in_place_of_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="probabilities of text 0 add up to 3"):
        brier(np.array([[1.0, 2.0]]), [0], ONE)
    with pytest.raises(DataError, match="gold classes from 2 to 2 for 2 columns"):
        brier(np.array([[0.5, 0.5]]), [2], ONE)


def test_no_texts_have_no_error() -> None:
    assert math.isnan(calibration_error([], [], ONE).value)
    assert math.isnan(adaptive_calibration_error([], [], ONE).value)
    assert math.isnan(brier(np.empty((0, 2)), [], ONE).value)
