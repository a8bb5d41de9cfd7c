"""Does a model know when it is right? ECE with equal bins and with equal masses, Brier score. Items are texts.

Confidence is the probability given to the predicted label (the highest). Invalid texts leave all of these undefined:
there is no probability to be off by.

Shapes: N texts, C classes, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, mean_scores, resample
from training.metrics.pairing import check_paired
from training.metrics.score import Score


def calibration_error(
    confidence: Sequence[float], right: Sequence[bool], bootstrap: Bootstrap, num_bins: int = 10
) -> Score:
    """ECE: mean distance of accuracy and mean confidence over bins, weighted by their texts (Guo et al. 2017).

    Bin b of B is (b/B, (b+1)/B]; 0 is in the first. So 1.0 is in the last and every text in exactly one.
    Raises: DataError if a finite confidence is outside [0, 1].
    """
    confidence_N, right_N, invalid = _checked(confidence, right)
    edges = np.arange(1, num_bins) / num_bins  # b/B rounded once; steps of 1/B drift: 3 x 0.1 is above 0.3
    bin_N = np.searchsorted(edges, confidence_N, side="left")
    error_N = right_N - confidence_N

    def statistic(counts_N: np.ndarray) -> np.ndarray:
        gaps = np.bincount(bin_N, counts_N * error_N, num_bins)
        return np.array([abs(gaps).sum() / len(error_N) if len(error_N) else np.nan])

    resampled = resample(len(error_N), statistic, bootstrap, invalid)
    return resampled.score("ece", lambda s: s[..., 0], f"bins:{num_bins}|edges:open-closed|confidence:highest")


def adaptive_calibration_error(
    confidence: Sequence[float], right: Sequence[bool], bootstrap: Bootstrap, num_bins: int = 10
) -> Score:
    """ECE over bins of equal mass: of the texts in order of confidence, each bin has N / B (Nixon et al. 2019).

    Texts of equal confidence have no order, so each counts as right as they are on average; a text on the border of two
    bins is in both by its parts. Raises: see `calibration_error`.
    """
    confidence_N, right_N, invalid = _checked(confidence, right)
    values, group_N = np.unique(confidence_N, return_inverse=True)

    def statistic(counts_N: np.ndarray) -> np.ndarray:
        mass = np.cumsum(np.bincount(group_N, counts_N, len(values)))
        gap = np.cumsum(np.bincount(group_N, counts_N * (right_N - confidence_N), len(values)))
        if not len(mass):
            return np.array([np.nan])
        borders = np.linspace(0, mass[-1], num_bins + 1)
        at_borders = np.interp(borders, np.concatenate([[0], mass]), np.concatenate([[0], gap]))
        return np.array([abs(np.diff(at_borders)).sum() / mass[-1]])

    resampled = resample(len(confidence_N), statistic, bootstrap, invalid)
    return resampled.score("adaptive_ece", lambda s: s[..., 0], f"bins:{num_bins}|mass:equal|confidence:highest")


def brier(probabilities_NC: np.ndarray, gold_N: Sequence[int], bootstrap: Bootstrap) -> Score:
    """Mean squared distance of the probabilities from the gold class, summed over classes: 0 to 2 (Brier 1950).

    gold_N: column of the gold class. Raises: DataError if it is none, or probabilities of a text do not add up to 1.
    """
    p_NC, gold = np.asarray(probabilities_NC, np.float64), np.asarray(gold_N, np.int64)
    check_paired(probabilities=p_NC, gold=gold)
    if len(gold) and not (gold.min() >= 0 and gold.max() < p_NC.shape[1]):
        raise DataError(f"gold classes from {gold.min()} to {gold.max()} for {p_NC.shape[1]} columns of probabilities")
    valid_N = np.isfinite(p_NC).all(axis=1)
    off = np.flatnonzero(valid_N & (abs(p_NC.sum(axis=1) - 1) > 1e-3))
    if len(off):
        raise DataError(
            f"probabilities of text {off[0]} add up to {p_NC[off[0]].sum():g}, not 1: give softmax of logits"
        )
    wanted_NC = np.zeros_like(p_NC)
    wanted_NC[np.arange(len(gold)), gold] = 1.0
    distance_N = ((p_NC - wanted_NC) ** 2).sum(axis=1)
    invalid = int((~valid_N).sum())
    values = {"brier": distance_N if not invalid else np.full_like(distance_N, np.nan)}
    return mean_scores(values, bootstrap, invalid, "classes:sum")["brier"]


def _checked(confidence: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray, int]:
    """Confidences and truth values, all NaN if one confidence is not finite; how many are not."""
    check_paired(confidence=confidence, right=right)
    confidence_N, right_N = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    finite_N = np.isfinite(confidence_N)
    outside = np.flatnonzero(finite_N & ((confidence_N < 0) | (confidence_N > 1)))
    if len(outside):
        raise DataError(
            f"confidence {confidence_N[outside[0]]:g} of item {outside[0]} is no probability: wanted 0 to 1"
        )
    invalid = int((~finite_N).sum())
    return (np.full_like(confidence_N, np.nan) if invalid else confidence_N), right_N, invalid
