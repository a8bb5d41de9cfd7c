"""Learning rates: values computed by hand from the formulas, and what holds for every schedule."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.loop_spec import ScheduleSpec
from training.pretrain.lr_schedule import rate_factor

KINDS = get_args(ScheduleSpec.model_fields["kind"].annotation)


def factors(num_steps: int, **fields: Any) -> list[float]:
    spec = ScheduleSpec.model_validate({"warmup_share": 0.2, "final_ratio": 0.0} | fields)
    return [rate_factor(step, num_steps, spec) for step in range(num_steps)]


def test_rate_warms_up_stays_and_decays_to_known_values() -> None:
    """Ten steps, two of warm-up, three of decay to 0: step 0 trains, and so does the last."""
    assert factors(10, decay_share=0.3) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "constant"}, [1, 1, 1]),
        ({"kind": "linear"}, [0.75, 0.5, 0.25]),
        ({"kind": "linear", "final_ratio": 0.2}, [0.8, 0.6, 0.4]),
        ({"kind": "cosine"}, [(1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]),
        ({"kind": "polynomial"}, [0.75**2, 0.5**2, 0.25**2]),
        ({"kind": "polynomial", "power": 1.0}, [0.75, 0.5, 0.25]),
        ({"kind": "wsd", "decay": "sqrt", "decay_share": 0.8}, [0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]),
        ({"kind": "inverse_sqrt"}, [math.sqrt(1 / 2), math.sqrt(1 / 3), math.sqrt(1 / 4)]),
        ({"kind": "inverse_sqrt", "final_ratio": 0.6}, [math.sqrt(1 / 2), 0.6, 0.6]),
    ],
)
def test_rate_of_each_kind_after_one_step_of_warmup(fields: dict[str, Any], expected: list[float]) -> None:
    """Four steps: one of warm-up, three that follow the formula at 1/4, 2/4, 3/4 of the way."""
    assert factors(4, warmup_share=0.25, **fields) == pytest.approx([1.0, *expected])


def test_rate_under_a_batch_that_grows_follows_the_tokens() -> None:
    """Twice the batch from half way on: the rate at a token is what it was."""
    spec = ScheduleSpec(kind="cosine")
    plain = [rate_factor(step, 100, spec) for step in range(100)]
    drawn, grown = 0.0, []
    while drawn < 100:
        grown.append((drawn, rate_factor(drawn, 100, spec)))
        drawn += 1 if drawn < 50 else 2
    assert len(grown) == 75
    assert all(factor == plain[int(at)] for at, factor in grown)


@given(
    kind=st.sampled_from(KINDS),
    decay_shape=st.sampled_from(["linear", "sqrt", "cosine"]),
    num_steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_rate_is_never_zero_and_never_above_the_peak(
    kind: str, decay_shape: str, num_steps: int, warmup: float, decay: float, final: float
) -> None:
    found = factors(num_steps, kind=kind, decay=decay_shape, warmup_share=warmup, decay_share=decay, final_ratio=final)
    assert all(0 < f <= 1 for f in found)
    falling = found[found.index(max(found)) :]
    assert falling == sorted(falling, reverse=True)
