"""How far two models are apart on the same documents: bounds and p-values by paired bootstrap.

A model's score is a ratio of sums, as nats over bytes; the difference of two such scores is resampled by document, once
for both models. Two intervals of it:

percentile: quantiles of the resampled differences. Where documents are few, or some hold most of the bytes, it is too
    narrow, and a gate that uses it promotes worse models more often than it says.
studentized: quantiles of (resampled difference - difference) / its own standard error, times the standard error (Efron
    and Tibshirani 1993, chapter 12). The error of a ratio is by linearisation (Cochran 1977, section 6.4).

docs/gate.md has the error rates of both. Shapes: N documents, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from training.gate_spec import GateSpec

BLOCK = 4_000_000  # numbers of a block of draws
PAIRS = [(i, j) for i in range(4) for j in range(i, 4)]


@dataclass(frozen=True)
class Paired:
    """difference: ours minus theirs; error: its standard error. centres, spreads: float64 (R,), of each replicate its
    difference and that difference's standard error. Bounds and p-values agree: an upper bound is below m just where p_worse(m) is at
    most 1 - confidence. Both count the draw itself among the replicates: (1 + k) / (R + 1), never 0.
    """

    difference: float
    error: float
    centres: np.ndarray
    spreads: np.ndarray
    studentized: bool

    def upper(self, confidence: float) -> float:
        """One-sided. inf where the replicates are too few, or too degenerate, for the confidence."""
        return self._bound(confidence, 1)

    def lower(self, confidence: float) -> float:
        return self._bound(confidence, -1)

    def p_worse(self, margin: float) -> float:
        """Of a difference as low as this where the truth is `margin` or above: small says that ours is not worse by it."""
        return self._p(margin, 1)

    def p_no_better(self) -> float:
        return self.p_worse(0.0)

    def p_harmless(self, margin: float) -> float:
        """Of a difference as high as this where the truth is `margin` or below: small says that ours is worse by more."""
        return self._p(margin, -1)

    def _statistics(self) -> np.ndarray:
        if not self.studentized:
            return self.centres
        return _divided(self.centres - self.difference, self.spreads)

    def _bound(self, confidence: float, side: int) -> float:
        """side: 1 upper, -1 lower. The bound of -d is minus the other bound of d, so one order of the replicates is enough."""
        count = math.floor((1 - confidence) * (len(self.centres) + 1) + 1e-9) - 1  # replicates that may lie beyond
        if count < 0:
            return side * math.inf
        values = np.sort(side * self._statistics())
        if not self.studentized:
            return float(side * values[len(values) - 1 - count])
        if self.error == 0:
            return self.difference
        return float(self.difference - side * self.error * values[count])

    def _p(self, margin: float, side: int) -> float:
        values = side * self._statistics()
        if self.studentized and self.error == 0:  # all documents agree: the difference is what it is
            beyond = 0 if side * self.difference < side * margin else len(values)
        elif self.studentized:
            beyond = int((values <= side * (self.difference - margin) / self.error).sum())
        else:
            beyond = int((values >= side * margin).sum())
        return (1 + beyond) / (len(values) + 1)


def compare(ours: np.ndarray, theirs: np.ndarray, spec: GateSpec, replicates: int = 0) -> Paired:
    """Difference of two ratios of sums. ours, theirs: float64 (N, 2), numerator and denominator of the same documents.

    The draws depend on the number of documents and spec.seed only. replicates: more than spec's, where many are tested.
    """
    n = len(ours)
    first, second = _ratio(ours.sum(axis=0)), _ratio(theirs.sum(axis=0))
    # a, c: numerators as they lie about the ratio of all, so that squares of small remainders are summed, not their differences
    columns = [ours[:, 0] - first * ours[:, 1], ours[:, 1], theirs[:, 0] - second * theirs[:, 1], theirs[:, 1]]
    products = [columns[i] * columns[j] for i, j in PAIRS]
    table_NK = np.stack([*columns, *products], axis=1)
    sums_RK = np.concatenate([weights_BN @ table_NK for weights_BN in draws(n, spec, replicates or spec.replicates)])
    shift_R, spread_R = _deviation(sums_RK, n)
    _, error = _deviation(table_NK.sum(axis=0)[None], n)
    difference = float(first - second)
    return Paired(difference, float(error[0]), difference + shift_R, spread_R, spec.interval == "studentized")


def draws(n: int, spec: GateSpec, replicates: int) -> Iterable[np.ndarray]:
    """How often each document is in each replicate, float64 (block, N). What fits in one block is kept for the next call:
    candidates of a night are compared on the same documents."""
    if n * replicates <= BLOCK:
        return (_block(n, spec.seed, replicates),)
    return _blocks(n, spec.seed, replicates)


@lru_cache(maxsize=1)
def _block(n: int, seed: int, replicates: int) -> np.ndarray:
    (block,) = _blocks(n, seed, replicates)
    return block


def _blocks(n: int, seed: int, replicates: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // n)
    for start in range(0, replicates, size):
        count = min(size, replicates - start)
        yield rng.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)


def _deviation(sums_RK: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """How far each replicate's difference is from the whole's, and its standard error.

    Of a document i the linear part of the difference is u_i = (a_i - x b_i) / B - (c_i - y d_i) / D, with x and y the
    replicate's ratios and B and D its sums: sum of u_i is 0, the error is the root of n / (n - 1) times the sum of u_i^2.
    """
    a, b, c, d = sums_RK[:, :4].T
    x, y = a / b, c / d
    factors = (1 / b, -x / b, -1 / d, y / d)
    squares = sum((1 if i == j else 2) * factors[i] * factors[j] * sums_RK[:, 4 + k] for k, (i, j) in enumerate(PAIRS))
    return x - y, np.sqrt(np.maximum(squares, 0) * n / max(1, n - 1))


def _ratio(sums: np.ndarray) -> np.float64:
    found: np.float64 = sums[0] / sums[1]
    return found


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """0 of 0 is 0: a replicate of one document only says nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = part / whole
    result: np.ndarray = np.where((part == 0) & (whole == 0), 0.0, found)
    return result
