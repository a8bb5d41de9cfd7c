"""How far two models are apart in their share of right answers to the same items: Tango's score test and bound.

Items that both have right or both have wrong say nothing about who is better, and often hardly any others are left, so
resampling them is no help: two models that agree on all of 60 items have a bootstrap interval of width 0. The score test
(Tango 1998, Statistics in Medicine 17:891) asks how likely the counts are if the loss were `margin`; of those 60 items it
says that less than 4.4 % may be lost, with 95 % confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from training.metrics.mcnemar import mcnemar_p

NORMAL = NormalDist()
STEPS = 60  # of the bisection: 2 * 2^-60


@dataclass(frozen=True)
class Shares:
    """Items that one of the two alone has right, of n that both have answered. difference: share lost, above 0 is worse."""

    only_ours: int
    only_theirs: int
    n: int

    @property
    def difference(self) -> float:
        return (self.only_theirs - self.only_ours) / self.n

    def p_worse(self, margin: float) -> float:
        """One-sided p of counts as good as these where ours loses `margin` of the items, or more."""
        return NORMAL.cdf(_score(self.only_ours, self.only_theirs, self.n, margin))

    def upper(self, confidence: float) -> float:
        """Largest loss that the counts are compatible with: where p_worse is 1 - confidence."""
        low, high = -1.0, 1.0
        wanted = NORMAL.inv_cdf(1 - confidence)
        for _ in range(STEPS):
            middle = (low + high) / 2
            if _score(self.only_ours, self.only_theirs, self.n, middle) > wanted:
                low = middle
            else:
                high = middle
        return high

    def p_no_better(self) -> float:
        """One-sided p of McNemar's test: of counts as good as these where ours is no better."""
        return self.mcnemar_p / 2 if self.only_ours > self.only_theirs else 1.0

    @property
    def mcnemar_p(self) -> float:
        """Two-sided."""
        return mcnemar_p(self.only_ours, self.only_theirs)


def _score(only_ours: int, only_theirs: int, n: int, loss: float) -> float:
    """Standard deviations that the loss found lies above `loss`, by the variance that is likeliest where `loss` is true.

    Under it the shares are q (only ours right), q + loss (only theirs): q is the root of the likelihood's derivative.
    """
    if loss < 0:
        return -_score(only_theirs, only_ours, n, -loss)
    half = loss * (2 * n + only_ours - only_theirs) - (only_ours + only_theirs)
    q = (math.sqrt(half * half + 8 * n * only_ours * loss * (1 - loss)) - half) / (4 * n)
    variance = n * (2 * q + loss * (1 - loss))
    off = only_theirs - only_ours - n * loss
    return off / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, off) if off else 0.0
