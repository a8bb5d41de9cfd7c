"""Learning rate as a pure function of the step: a resumed run needs no scheduler state."""

from __future__ import annotations

from training.specs import ScheduleSpec


def rate_factor(step: int, num_steps: int, spec: ScheduleSpec) -> float:
    """Warm-up, stable, decay (arXiv:2404.06395): factor in (0, 1] of the peak rate at `step` in [0, num_steps).

    Warm-up is (step + 1) / warmup, so the first step trains. Decay is linear towards `final_ratio`, which it would
    reach at a virtual step after the last one, so no step has rate 0 (torchtitan does the same).
    """
    warmup = round(spec.warmup_share * num_steps)
    decay = min(round(spec.decay_share * num_steps), num_steps - warmup)
    if step < warmup:
        return (step + 1) / warmup
    if step < num_steps - decay:
        return 1.0
    passed = (step - (num_steps - decay) + 1) / (decay + 1)
    return 1.0 - (1.0 - spec.final_ratio) * passed
