"""Scaling of the loss for fp16, whose smallest number is 6e-8: gradients below it would be lost.

The scale is decided from the global gradient norm, which is the same number on all ranks, so they stay together.
"""

from __future__ import annotations

from dataclasses import dataclass

START, LEAST, GREATEST = 2.0**16, 1.0, 2.0**24
GROW_AFTER = 2000  # steps without an overflow; arXiv:1710.03740 and torch's GradScaler


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied with, and the steps since it last changed."""

    scale: float = 1.0
    num_good: int = 0

    def after(self, finite: bool) -> LossScale:
        """Half after a gradient that overflowed, twice after GROW_AFTER that did not."""
        if not finite:
            return LossScale(max(LEAST, self.scale / 2))
        if self.num_good + 1 < GROW_AFTER:
            return LossScale(self.scale, self.num_good + 1)
        return LossScale(min(GREATEST, self.scale * 2))

    @property
    def can_fall(self) -> bool:
        """Whether the same rows are worth another try at half the scale."""
        return self.scale > LEAST


def first_scale(precision: str) -> LossScale:
    return LossScale(START) if precision == "fp16" else LossScale()
