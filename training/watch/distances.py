"""Distances between two histograms, and what chance alone makes of them.

A distance of two samples is above 0 even where nothing changed, the more so the fewer they are. So each comes with its
law under no change, drawn: windows of the same size from the reference (the reference drawn anew too, as it is a sample
itself). The p-value is (1 + draws at least as far) / (draws + 1) (Davison and Hinkley 1997, section 4.2.1).

Shapes: B bins, R replicates, U units (texts, or lines of traffic).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Distance = Callable[[Numbers, Numbers], Numbers]  # counts (..., B) of window and reference -> (...)

SMOOTHING = 0.5  # added to each bin, so that an empty one is unlikely, not impossible (Jeffreys' prior)


@dataclass(frozen=True)
class Compared:
    """value: the distance less what chance alone makes of it on average. n: independent units in the window."""

    value: float
    by_chance: float
    p: float
    n: int


def stability_index(window: Numbers, reference: Numbers) -> Numbers:
    """Population stability index: sum over bins of (w - r) ln(w / r), the symmetric Kullback-Leibler divergence, in nats.

    Siddiqi, Credit Risk Scorecards (2006): below 0.1 little, above 0.25 a shift. Of two samples of one law it is about
    (1/n + 1/m) times chi-squared with B - 1 degrees (Yurdakul and Naranjo 2020), which `compared` takes off.
    """
    w, r = _shares(window + SMOOTHING), _shares(reference + SMOOTHING)
    return np.asarray(((w - r) * np.log(w / r)).sum(-1))


def divergence(window: Numbers, reference: Numbers) -> Numbers:
    """Jensen-Shannon divergence to base 2: 0 for equal shares, 1 where no bin is shared (Lin 1991).

    Its square root is a metric (Endres and Schindelin 2003); that is the distance told.
    """
    w, r = _shares(window), _shares(reference)
    middle = (w + r) / 2
    return np.asarray((_relative(w, middle) + _relative(r, middle)) / 2)


def largest_gap(window: Numbers, reference: Numbers) -> Numbers:
    """Kolmogorov-Smirnov: the largest difference of cumulative shares at the edges of ordered bins."""
    w, r = _shares(window), _shares(reference)
    return np.asarray(np.abs(np.cumsum(w, -1) - np.cumsum(r, -1)).max(-1))


def compared(
    distance: Distance, window_B: Numbers, reference_B: Numbers, replicates: int, seed: int, subtract: bool
) -> Compared:
    """For requests that count once each (a language, a length). subtract: of the distances that grow by a sum over bins.

    Drawn from the reference, in which a bin that only the window has is rare, not impossible.
    """
    n, m = round(window_B.sum()), round(reference_B.sum())
    shares_B = _shares(reference_B + SMOOTHING * (reference_B + window_B > 0))
    drawn_R = _drawn(distance, n, m, tuple(shares_B.tolist()), replicates, seed)
    told = float(distance(window_B, reference_B))
    p = (1 + int((drawn_R >= told).sum())) / (replicates + 1)
    by_chance = float(drawn_R.mean())
    return Compared(max(told - by_chance, 0.0) if subtract else told, by_chance, p, n)


@lru_cache(maxsize=8)
def _drawn(
    distance: Distance, n: int, m: int, shares_B: tuple[float, ...], replicates: int, seed: int
) -> NDArray[np.float64]:
    """Distances (R,) of two samples of these shares, of n and m. Kept, as windows of one size ask again."""
    rng = np.random.default_rng([seed, n])
    windows_RB = rng.multinomial(n, shares_B, size=replicates).astype(np.float64)
    references_RB = rng.multinomial(m, shares_B, size=replicates).astype(np.float64)
    return distance(windows_RB, references_RB)


def compared_clusters(window_B: Numbers, units_UB: Numbers, num_units: int, replicates: int, seed: int) -> Compared:
    """Jensen-Shannon distance of counts that come in clusters: the tokens of one text go together.

    Units are drawn whole: `num_units` for a window, U for the reference. The tail is a gamma law with mean and deviation of
    the draws (Satterthwaite 1946: a weighted sum of chi-squares is nearly one), so that a few hundred draws tell a p-value
    of a millionth. n: units in the window.
    """
    from scipy.special import gammaincc

    rng = np.random.default_rng([seed, num_units])
    windows_RB = _times_drawn(rng, len(units_UB), num_units, replicates) @ units_UB
    references_RB = _times_drawn(rng, len(units_UB), len(units_UB), replicates) @ units_UB
    drawn_R = divergence(windows_RB, references_RB)
    told = float(divergence(window_B, units_UB.sum(0)))
    mean, variance = float(drawn_R.mean()), max(float(drawn_R.var(ddof=1)), 1e-18)
    p = float(gammaincc(mean**2 / variance, told * mean / variance)) if mean > 0 else float(told <= 0)
    return Compared(max(told - mean, 0.0) ** 0.5, mean**0.5, p, num_units)


def _times_drawn(rng: np.random.Generator, num: int, draws: int, replicates: int) -> Numbers:
    """(R, U): how often each unit is in a sample of `draws` with replacement."""
    places = rng.integers(num, size=(replicates, draws)) + num * np.arange(replicates)[:, None]
    return np.bincount(places.ravel(), minlength=num * replicates).reshape(replicates, num).astype(np.float64)


def _shares(counts: Numbers) -> Numbers:
    total = counts.sum(-1, keepdims=True)
    return np.asarray(counts / np.where(total > 0, total, 1.0))


def _relative(shares: Numbers, middle: Numbers) -> Numbers:
    """sum of s log2(s / m); a bin without a share adds nothing."""
    ratio = np.divide(shares, middle, out=np.ones_like(shares), where=shares > 0)
    return np.asarray((shares * np.log2(ratio)).sum(-1))
