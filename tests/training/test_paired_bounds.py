"""Laws of the bounds that the gate decides by, and their values on counts worked out by hand or by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluate.holm import holm
from training.evaluate.paired_bounds import Paired, compare
from training.evaluate.paired_shares import Shares
from training.gate_spec import GateSpec

INTERVALS = ("studentized", "percentile")


def documents(n: int, seed: int, loss: float = 0.0, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of n documents under two models; the first loses `loss` bits per byte on average."""
    rng = np.random.default_rng(seed)
    size = np.ceil(rng.lognormal(6, 0.7, n))
    theirs = size * rng.normal(2, 0.3, n)
    return np.stack([theirs + size * rng.normal(loss, spread, n), size], 1), np.stack([theirs, size], 1)


def compared(interval: str, n: int, seed: int, replicates: int = 500, loss: float = 0.0) -> Paired:
    return compare(*documents(n, seed, loss), GateSpec(interval=interval, replicates=replicates, seed=seed))  # type: ignore[arg-type]


@given(
    st.sampled_from(INTERVALS), st.integers(2, 60), st.integers(0, 10**6), st.floats(-0.05, 0.05),
    st.sampled_from([0.8, 0.95, 0.99]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_bounds_and_p_values_say_the_same(interval: str, n: int, seed: int, margin: float, confidence: float) -> None:
    one = compared(interval, n, seed)
    assert (one.upper(confidence) < margin) == (one.p_worse(margin) <= 1 - confidence + 1e-12)
    assert (one.lower(confidence) > margin) == (one.p_harmless(margin) <= 1 - confidence + 1e-12)


@pytest.mark.parametrize("interval", INTERVALS)
def test_two_models_exchanged_have_the_opposite_bounds(interval: str) -> None:
    ours, theirs = documents(40, 3, 0.02)
    spec = GateSpec(interval=interval)  # type: ignore[arg-type]
    one, other = compare(ours, theirs, spec), compare(theirs, ours, spec)
    assert other.difference == -one.difference
    assert other.lower(0.95) == pytest.approx(-one.upper(0.95), abs=1e-12)
    assert other.p_harmless(-0.01) == one.p_worse(0.01)


def test_standard_error_of_equal_documents_is_that_of_a_mean() -> None:
    """Documents of one size: the ratio of sums is a mean, whose error is the deviation over the root of n. A wrong habit
    divides the deviation of the replicates by the root of their number too."""
    rng = np.random.default_rng(0)
    lost = rng.normal(0.1, 0.3, 150)
    ours, theirs = np.stack([1 + lost, np.ones(150)], 1), np.ones((150, 2))
    one = compare(ours, theirs, GateSpec(replicates=4000))
    assert one.error == pytest.approx(lost.std(ddof=1) / math.sqrt(150), rel=1e-12)
    assert one.centres.std(ddof=1) == pytest.approx(one.error, rel=0.05)


def test_standard_error_of_a_ratio_is_that_of_its_replicates() -> None:
    one = compared("studentized", 400, 5, replicates=4000)
    assert one.centres.std(ddof=1) == pytest.approx(one.error, rel=0.05)


def test_studentized_bound_is_wider_where_documents_are_few() -> None:
    few = [compared("studentized", 12, s).upper(0.95) - compared("percentile", 12, s).upper(0.95) for s in range(20)]
    many = [compared("studentized", 800, s).upper(0.95) - compared("percentile", 800, s).upper(0.95) for s in range(5)]
    assert np.mean(few) > 5 * abs(np.mean(many))


def test_draws_in_blocks_are_the_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compared("studentized", 50, 1)
    monkeypatch.setattr("training.evaluate.paired_bounds.BLOCK", 50 * 7)
    assert compared("studentized", 50, 1).centres == pytest.approx(whole.centres, abs=1e-15)


@pytest.mark.parametrize("interval", INTERVALS)
def test_models_that_agree_on_every_document_are_apart_by_nothing(interval: str) -> None:
    ours, _ = documents(30, 1)
    one = compare(ours, ours, GateSpec(interval=interval))  # type: ignore[arg-type]
    assert (one.difference, one.upper(0.95), one.lower(0.95)) == (0, 0, 0)
    assert one.p_no_better() == 1
    assert one.p_worse(0.01) < 0.001


def test_too_few_replicates_for_the_confidence_bound_nothing() -> None:
    assert compared("studentized", 30, 1, replicates=100).upper(0.999) == math.inf


def test_shares_of_the_known_example() -> None:
    """200 items, one alone right on 10, the other on 2: paired, .0386 by McNemar; its loss is bound below by .013."""
    ahead, behind = Shares(10, 2, 200), Shares(2, 10, 200)
    assert ahead.mcnemar_p == behind.mcnemar_p == pytest.approx(0.03857, abs=1e-5)
    assert (ahead.difference, behind.difference) == (-0.04, 0.04)
    assert ahead.p_no_better() == pytest.approx(0.03857 / 2, abs=1e-5)
    assert behind.p_no_better() == 1
    assert ahead.upper(0.95) == pytest.approx(-0.0131, abs=1e-4)
    assert behind.upper(0.95) == pytest.approx(0.0733, abs=1e-4)


def test_shares_of_as_many_on_either_side_show_nothing() -> None:
    assert Shares(3, 3, 50).mcnemar_p == 1
    assert Shares(3, 3, 50).p_no_better() == 1


def test_shares_that_agree_everywhere_are_no_proof_of_more_than_the_items_can_show() -> None:
    """z^2 / (n + z^2), by hand: the variance of no discordant item under loss d is n d (1 - d)."""
    z2 = 1.6448536**2
    for n in (20, 60, 500):
        assert Shares(0, 0, n).upper(0.95) == pytest.approx(z2 / (n + z2), abs=1e-6)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 200), st.sampled_from([0.9, 0.95, 0.99]))
def test_bound_of_shares_is_where_its_p_is_what_is_left(ours: int, theirs: int, others: int, confidence: float) -> None:
    n = max(1, ours + theirs + others)
    one = Shares(ours, theirs, n)
    bound = one.upper(confidence)
    assert one.difference <= bound <= 1
    if abs(bound) < 0.999:
        assert one.p_worse(bound) == pytest.approx(1 - confidence, abs=1e-6)
        assert one.p_worse(bound + 1e-3) < 1 - confidence < one.p_worse(bound - 1e-3)


def test_holm_of_three_by_hand() -> None:
    """The smallest times 3, the next times 2, and none below the one before."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_one_test_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in pairs] == sorted(a for _, a in pairs)
    for p, a in pairs:
        assert min(1.0, p) <= a <= min(1.0, len(p_values) * p) + 1e-15
