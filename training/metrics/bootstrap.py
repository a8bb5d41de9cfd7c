"""Percentile bootstrap over items, from statistics that are summed before the metric is computed.

A metric of a corpus (F1, BLEU, perplexity) is a function of sums over items. So a replicate draws items, sums their
statistics, and applies the metric to the sums: an average of per-item scores would be another quantity (Koehn 2004).
The standard error is the deviation of the replicates as it is, not divided by the root of their number.

Each replicate has its own generator, made from (seed, replicate): a result does not depend on how replicates are
shared out, and two models scored on the same items with the same `Bootstrap` are scored on the same draws. Draws are by
position: list the items of both models in one order, that of their ids.

Shapes: N items, R replicates, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from spark_jobs.errors import DataError
from spark_jobs.manifests import Frozen
from training.metrics.score import CONFIDENCE, Score

Statistic = Callable[[np.ndarray], np.ndarray]  # how often each item is drawn, int64 (N,) -> statistics, (S,)
Metric = Callable[[np.ndarray], np.ndarray]  # statistics, (..., S) -> values, (...)


class Bootstrap(Frozen):
    replicates: int = Field(1000, ge=1, description="Draws of all items with replacement, behind each interval.")
    seed: int = Field(0, ge=0, description="Seed of the draws.")

    @property
    def signature(self) -> str:
        return f"interval:percentile|confidence:{CONFIDENCE}|replicates:{self.replicates}|seed:{self.seed}"


@dataclass(frozen=True)
class Resampled:
    """Statistics of all items, `whole` (S,), and of the items of each draw, `replicates` (R, S)."""

    whole: np.ndarray
    replicates: np.ndarray
    n: int
    n_invalid: int
    bootstrap: Bootstrap

    def score(self, name: str, metric: Metric, definition: str = "") -> Score:
        """definition: `key:value` parts of the signature that belong to the metric."""
        low, high = percentiles(metric(self.replicates))
        return Score(
            name=name,
            value=float(metric(self.whole)),
            n=self.n,
            n_invalid=self.n_invalid,
            low=low,
            high=high,
            signature="|".join(filter(None, (definition, self.bootstrap.signature))),
        )


def drawn(num_items: int, seed: int, replicate: int) -> np.ndarray:
    """int64 (N,): how often each item is in this replicate; they sum to N."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(replicate,)))
    return np.bincount(rng.integers(num_items, size=num_items), minlength=num_items)


def resample(num_items: int, statistic: Statistic, bootstrap: Bootstrap, n_invalid: int = 0) -> Resampled:
    """`statistic` of all items and of each draw. Without items every draw is empty."""
    whole = np.asarray(statistic(np.ones(num_items, np.int64)), np.float64)
    replicates = np.empty((bootstrap.replicates, *whole.shape))
    for r in range(bootstrap.replicates):
        replicates[r] = statistic(drawn(num_items, bootstrap.seed, r)) if num_items else whole
    return Resampled(whole, replicates, num_items, n_invalid, bootstrap)


def resample_sums(stats_NS: np.ndarray, bootstrap: Bootstrap, n_invalid: int = 0) -> Resampled:
    """Sums of each column over the items."""
    stats = np.asarray(stats_NS, np.float64)
    return resample(len(stats), lambda counts_N: counts_N @ stats, bootstrap, n_invalid)


def mean_scores(
    values: dict[str, np.ndarray], bootstrap: Bootstrap, n_invalid: int, definition: str
) -> dict[str, Score]:
    """Means over items of several per-item values (N,), on the same draws."""
    stats_NS = np.stack([*values.values()], axis=-1)
    resampled = resample_sums(stats_NS, bootstrap, n_invalid)
    return {name: resampled.score(name, mean_of_column(i, len(stats_NS)), definition) for i, name in enumerate(values)}


def mean_of_column(column: int, num_items: int) -> Metric:
    return lambda sums: sums[..., column] / num_items if num_items else np.full(sums.shape[:-1], np.nan)


def percentiles(values_R: np.ndarray) -> tuple[float, float]:
    """Bounds of the middle 95 % of the replicates. Those in which the metric is undefined are left out."""
    defined = values_R[np.isfinite(values_R)]
    if not len(defined):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same items: ours minus theirs, its 95 % interval, its standard error.

    p: one-sided, of a difference as large where ours is no better (higher is better): (1 + replicates <= 0) / (R + 1).
    """

    value: float
    low: float
    high: float
    standard_error: float
    p: float
    n: int


def paired_difference(ours: Resampled, theirs: Resampled, metric: Metric) -> Difference:
    """Each draw scores both models, so that what is hard for both cancels.

    Raises: DataError if the two were not drawn alike.
    """
    if ours.n != theirs.n or ours.bootstrap != theirs.bootstrap:
        raise DataError(
            f"a paired comparison wants the same draws of the same items, got {ours.n} items with {ours.bootstrap!r} and "
            f"{theirs.n} with {theirs.bootstrap!r}: score both models on the shared items with one Bootstrap"
        )
    differences_R = metric(ours.replicates) - metric(theirs.replicates)
    low, high = percentiles(differences_R)
    defined = differences_R[np.isfinite(differences_R)]
    return Difference(
        value=float(metric(ours.whole) - metric(theirs.whole)),
        low=low,
        high=high,
        standard_error=float(defined.std(ddof=1)) if len(defined) > 1 else float("nan"),
        p=float((1 + (~(differences_R > 0)).sum()) / (len(differences_R) + 1)),
        n=ours.n,
    )
