"""From logits to answers. A row with a logit that is not finite has no answer: `argmax` would give one.

Shapes: N items, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark_jobs.errors import DataError


def best_labels(logits_NC: np.ndarray, labels: Sequence[str]) -> list[str | None]:
    """The label of each row's highest logit, the first of several; None where any logit of the row is not finite.

    Raises: DataError if the columns are not the labels'.
    """
    logits = _of_labels(logits_NC, labels)
    finite_N = np.isfinite(logits).all(axis=1)
    best_N = np.where(np.isfinite(logits), logits, -np.inf).argmax(axis=1)
    return [labels[k] if finite else None for k, finite in zip(best_N.tolist(), finite_N.tolist(), strict=True)]


def labels_above(logits_NC: np.ndarray, labels: Sequence[str], threshold: float = 0.0) -> list[frozenset[str] | None]:
    """Labels whose logit is above the threshold (0: probability a half); None where any logit is not finite.

    Raises: DataError if the columns are not the labels'.
    """
    return [
        frozenset(labels[k] for k in np.flatnonzero(row > threshold).tolist()) if np.isfinite(row).all() else None
        for row in _of_labels(logits_NC, labels)
    ]


def num_ties(logits_NC: np.ndarray) -> int:
    """Rows whose highest logit is there more than once: their label is the first by convention, not by evidence."""
    logits = np.asarray(logits_NC, np.float64)
    finite = logits[np.isfinite(logits).all(axis=1)]
    return int(((finite == finite.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum()) if len(finite) else 0


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Probabilities, float64 (N, C); a row with a logit that is not finite is NaN."""
    logits = np.asarray(logits_NC, np.float64)
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    known = np.where(finite, logits, 0.0)
    exponentials = np.exp(known - known.max(axis=1, keepdims=True))
    probabilities: np.ndarray = np.where(finite, exponentials / exponentials.sum(axis=1, keepdims=True), np.nan)
    return probabilities


def _of_labels(logits_NC: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    logits = np.asarray(logits_NC, np.float64)
    if logits.ndim != 2 or logits.shape[1] != len(labels):
        raise DataError(f"logits of shape {logits.shape} for {len(labels)} labels: one row a text, one column a label")
    return logits
