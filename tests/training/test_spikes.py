"""Detector and windows of the spike policy; what training makes of them is in test_trainer_spikes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.loop_spec import SpikeSpec
from training.pretrain.spikes import Incident, SpikeState, joined, limit_of, position_of, trouble_of

SPEC = SpikeSpec(enabled=True)


def state_after(losses: list[float], norms: list[float], spec: SpikeSpec = SPEC) -> SpikeState:
    state = SpikeState()
    for loss, norm in zip(losses, norms, strict=True):
        state = state.accepted(loss, norm, spec)
    return state


def test_limit_is_the_mean_and_six_sample_deviations() -> None:
    """2, 4, 4, 4, 5, 5, 7, 9: mean 5, sum of squares 32, sample deviation sqrt(32 / 7)."""
    assert limit_of([2, 4, 4, 4, 5, 5, 7, 9], 6.0) == pytest.approx(5 + 6 * math.sqrt(32 / 7), abs=1e-12)


def test_spike_is_found_from_the_first_active_step_on() -> None:
    """63 accepted steps say nothing; with 64 a loss or a norm above the limit is trouble, at the limit it is not."""
    losses, norms = [2.0, 3.0] * 32, [1.0, 1.5] * 32
    early = state_after(losses[:63], norms[:63])
    assert trouble_of(50.0, 1.0, early, SPEC) == ""
    state = state_after(losses, norms)
    limit = limit_of(losses, 6.0)
    assert trouble_of(limit, 1.0, state, SPEC) == ""
    assert trouble_of(math.nextafter(limit, 9.0), 1.0, state, SPEC).startswith("loss 5.52")
    assert "gradient norm 9" in trouble_of(2.5, 9.0, state, SPEC)
    assert trouble_of(50.0, 9.0, state, SpikeSpec()) == ""


def test_window_forgets_old_steps() -> None:
    spec = SpikeSpec(enabled=True, window=4, active_after=2)
    assert state_after([9.0, 1, 2, 3, 4], [1.0] * 5, spec).losses == (1, 2, 3, 4)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf)])
def test_step_that_is_not_finite_is_trouble_even_without_a_detector(loss: float, norm: float) -> None:
    assert trouble_of(loss, norm, SpikeState(), SpikeSpec())


def test_windows_that_touch_become_one() -> None:
    windows = joined(joined(joined((), (10, 14)), (2, 4)), (14, 16))
    assert windows == ((2, 4), (10, 16))
    assert joined(windows, (3, 12)) == ((2, 16),)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=6))
def test_positions_are_those_of_the_stream_without_its_jumped_rows(cuts: list[tuple[int, int]]) -> None:
    windows: tuple[tuple[int, int], ...] = ()
    for first, length in cuts:
        windows = joined(windows, (first, first + length))
    left = [p for p in range(200) if not any(a <= p < b for a, b in windows)]
    assert [position_of(i, windows) for i in range(50)] == left[:50]


def test_rollback_keeps_what_was_learnt_about_rows_and_forgets_the_losses_since() -> None:
    saved = state_after([1.0] * 3, [1.0] * 3)
    skip = Incident(step=6, action="skip", reason="loss 9", rows=(20, 24), to_step=5)
    now = saved.accepted(2.0, 1.0, SPEC).skipped(skip)
    assert (now.in_a_row, now.jumped) == (1, ((20, 24),))
    back = saved.rolled_back(now, Incident(step=6, action="rollback", reason="loss 9", rows=(12, 24), to_step=3))
    assert (back.losses, back.in_a_row, back.num_rollbacks) == ((1.0,) * 3, 0, 1)
    assert back.jumped == ((12, 24),)
    assert [i.action for i in back.incidents] == ["skip", "rollback"]
