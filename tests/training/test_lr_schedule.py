from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.pretrain.lr_schedule import rate_factor
from training.specs import ScheduleSpec


def test_rate_warms_up_stays_and_decays_to_known_values() -> None:
    """Ten steps, two of warm-up, three of decay to 0: step 0 trains, and so does the last."""
    spec = ScheduleSpec(warmup_share=0.2, decay_share=0.3, final_ratio=0.0)
    factors = [rate_factor(step, 10, spec) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@given(
    num_steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_rate_is_never_zero_and_never_above_the_peak(num_steps: int, warmup: float, decay: float, final: float) -> None:
    spec = ScheduleSpec(warmup_share=warmup, decay_share=decay, final_ratio=final)
    factors = [rate_factor(step, num_steps, spec) for step in range(num_steps)]
    assert all(0 < f <= 1 for f in factors)
    falling = factors[factors.index(max(factors)) :]
    assert falling == sorted(falling, reverse=True)
