"""Learning rate as a pure function of how much of the plan's text is drawn: a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from training.loop_spec import ScheduleSpec


def rate_factor(step: float, num_steps: int, spec: ScheduleSpec) -> float:
    """Factor in (0, 1] of the peak rate at `step` in [0, num_steps).

    A step is `sequences_per_step` sequences of the plan, whatever an optimizer step really takes: where the batch
    grows, the rate follows the tokens and not the number of updates, and `step` may be a fraction.
    Warm-up is (step + 1) / warmup, so the first step trains. A falling rate would reach `final_ratio` at a virtual step
    after the last one, so that no step has rate 0 (torchtitan does the same).
    Sources: wsd arXiv:2404.06395, its sqrt form 1 - sqrt(x) arXiv:2405.18392; cosine arXiv:1608.03983; inverse_sqrt
    arXiv:1706.03762.
    """
    warmup = round(spec.warmup_share * num_steps)
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if spec.kind == "constant":
        return 1.0
    if spec.kind == "inverse_sqrt":
        return max(spec.final_ratio, math.sqrt(max(warmup, 1) / (step + 1)))
    decay = num_steps - warmup
    if spec.kind == "wsd":
        decay = min(round(spec.decay_share * num_steps), decay)
    if step < num_steps - decay:
        return 1.0
    passed = (step - (num_steps - decay) + 1) / (decay + 1)
    return 1.0 - (1.0 - spec.final_ratio) * _fallen(passed, spec)


def _fallen(passed: float, spec: ScheduleSpec) -> float:
    """Share of the way from the peak to the last rate that is done at `passed` in (0, 1) of the decay."""
    shape = spec.decay if spec.kind == "wsd" else spec.kind
    if shape == "cosine":
        return (1.0 - math.cos(math.pi * passed)) / 2
    if shape == "sqrt":
        return math.sqrt(passed)
    if shape == "polynomial":
        return 1.0 - math.pow(1.0 - passed, spec.power)
    return passed
