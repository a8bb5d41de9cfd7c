"""Numbers predicted for texts or pairs: MSE, MAE, R2, Pearson, Spearman. Items are texts.

None of them has a worst value, so one prediction that is not finite leaves them undefined (NaN): left out, it would
make a model better that failed on its hard texts. Correlations with a constant are undefined.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, resample, resample_sums
from training.metrics.pairing import check_paired
from training.metrics.ratio import ratio
from training.metrics.score import Score

CONSTANT = 1e-12  # a variance below this share of the mean square is rounding


def regression_scores(gold: Sequence[float], predicted: Sequence[float], bootstrap: Bootstrap) -> dict[str, Score]:
    """mse, mae, r2, pearson, spearman.

    Raises: DataError if a gold value is not finite.
    """
    check_paired(gold=gold, predicted=predicted)
    gold_N, predicted_N = np.asarray(gold, np.float64), np.asarray(predicted, np.float64)
    if not np.isfinite(gold_N).all():
        i = int(np.flatnonzero(~np.isfinite(gold_N))[0])
        raise DataError(f"gold value {gold_N[i]} of item {i} is not finite: check the labels")
    invalid = int((~np.isfinite(predicted_N)).sum())
    if invalid:
        predicted_N = np.full_like(predicted_N, np.nan)
    sums = resample_sums(_moments(gold_N, predicted_N), bootstrap, invalid)
    ranks = resample(len(gold_N), _Spearman(gold_N, predicted_N), bootstrap, invalid)
    return {
        "mse": sums.score("mse", lambda s: ratio(s[..., 5], s[..., 7])),
        "mae": sums.score("mae", lambda s: ratio(s[..., 6], s[..., 7])),
        "r2": sums.score("r2", _r2),
        "pearson": sums.score("pearson", _pearson),
        "spearman": ranks.score("spearman", lambda s: s[..., 0], "ties:mean-rank"),
    }


def _moments(gold_N: np.ndarray, predicted_N: np.ndarray) -> np.ndarray:
    """(N, 8): g, p, gg, pp, gp of values centred on their means (else squares cancel), squared and absolute error, 1."""
    if not len(gold_N):
        return np.empty((0, 8))
    g, p, error = gold_N - gold_N.mean(), predicted_N - predicted_N.mean(), gold_N - predicted_N
    return np.stack([g, p, g * g, p * p, g * p, error**2, abs(error), np.ones_like(g)], axis=-1)


def _r2(s: np.ndarray) -> np.ndarray:
    error, spread = s[..., 5], _spread(s[..., 0], s[..., 2], s[..., 7])
    return np.asarray(1 - ratio(error, spread))


def _pearson(s: np.ndarray) -> np.ndarray:
    g, p, gg, pp, gp, _, _, n = np.moveaxis(s, -1, 0)
    together = gp - ratio(g * p, n)
    return np.asarray(np.clip(ratio(together, np.sqrt(_spread(g, gg, n) * _spread(p, pp, n))), -1.0, 1.0))


def _spread(total: np.ndarray, squares: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Sum of squared deviations from the mean of the draw; exactly 0 for a constant."""
    spread = squares - ratio(total**2, n)
    return np.where(spread > CONSTANT * squares, spread, np.where(np.isnan(spread), np.nan, 0.0))


class _Spearman:
    """Pearson correlation of the ranks of a draw; equal values share the mean of their ranks."""

    def __init__(self, gold_N: np.ndarray, predicted_N: np.ndarray) -> None:
        self.values = [np.unique(values_N, return_inverse=True)[1] for values_N in (gold_N, predicted_N)]
        self.defined = bool(np.isfinite(predicted_N).all())

    def __call__(self, counts_N: np.ndarray) -> np.ndarray:
        n = counts_N.sum()
        if not self.defined or n == 0:
            return np.array([np.nan])
        g, p = (self._centred_ranks(value_N, counts_N) for value_N in self.values)
        spread = np.sqrt((counts_N * g * g).sum() * (counts_N * p * p).sum())
        return np.array([np.clip((counts_N * g * p).sum() / spread, -1, 1) if spread > 0 else np.nan])

    @staticmethod
    def _centred_ranks(value_N: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
        """Ranks are half integers and their mean is (n + 1) / 2, so nothing is rounded: a constant gives zeros."""
        size = np.bincount(value_N, counts_N)
        rank = np.cumsum(size) - (size - 1) / 2
        centred: np.ndarray = rank[value_N] - (counts_N.sum() + 1) / 2
        return centred
