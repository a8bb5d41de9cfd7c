"""Shares of items that are right, with Wilson's interval: no draws needed, and sensible at 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from training.metrics.score import CONFIDENCE, Score


def proportion(name: str, right: Sequence[bool], n_invalid: int = 0, definition: str = "") -> Score:
    """right: one truth value an item; an invalid item is False here and counted in n_invalid."""
    hits, n = sum(map(bool, right)), len(right)
    low, high = wilson_interval(hits, n)
    interval = f"interval:wilson|confidence:{CONFIDENCE}"
    return Score(
        name=name,
        value=hits / n if n else math.nan,
        n=n,
        n_invalid=n_invalid,
        low=low,
        high=high,
        signature="|".join(filter(None, (definition, interval))),
    )


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion, without continuity correction (Wilson 1927); NaN for n = 0."""
    if n == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the bound is the proportion itself; rounding must not move it.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)
