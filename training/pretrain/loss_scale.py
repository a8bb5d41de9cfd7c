"""Scaling of the loss for fp16, whose smallest number is 6e-8: gradients below it would be lost.

The scale is decided from the global gradient norm, which is the same number on all ranks, so they stay together.
"""

from __future__ import annotations

from spark_jobs.manifests import Frozen

START, LEAST, GREATEST = 2.0**16, 1.0, 2.0**24
GROW_AFTER = 2000  # steps without an overflow; arXiv:1710.03740 and torch's GradScaler


class LossScale(Frozen):
    """What the loss is multiplied with, and the steps since it last changed."""

    scale: float = 1.0
    num_good: int = 0
    fixed: bool = True  # in every precision but fp16

    def after(self, finite: bool) -> LossScale:
        """Half after a gradient that overflowed, twice after GROW_AFTER that did not."""
        if self.fixed:
            return self
        if not finite:
            return LossScale(scale=max(LEAST, self.scale / 2), fixed=False)
        if self.num_good + 1 < GROW_AFTER:
            return LossScale(scale=self.scale, num_good=self.num_good + 1, fixed=False)
        return LossScale(scale=min(GREATEST, self.scale * 2), fixed=False)

    @property
    def can_fall(self) -> bool:
        """Whether the same rows are worth another try at half the scale."""
        return not self.fixed and self.scale > LEAST


def first_scale(precision: str) -> LossScale:
    return LossScale(scale=START, fixed=False) if precision == "fp16" else LossScale()
