"""One label a text: accuracy, F1, Matthews correlation, confusion. Items are texts.

`predicted` holds a label for each text, or None where the model gave no finite answer: never right, counted as invalid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.metrics.bootstrap import Bootstrap
from training.metrics.f1 import Counts, KindScores, count_findings, f1, parts, scores_by_kind
from training.metrics.pairing import check_paired
from training.metrics.proportion import proportion
from training.metrics.ratio import ratio
from training.metrics.score import Score


def classification_scores(
    gold: Sequence[str], predicted: Sequence[str | None], bootstrap: Bootstrap
) -> dict[str, Score]:
    """accuracy, macro_f1, micro_f1, weighted_f1, matthews."""
    counts = count_labels(gold, predicted, bootstrap)
    return {
        "accuracy": accuracy(gold, predicted),
        "macro_f1": f1(counts, "macro", "macro_f1"),
        "micro_f1": f1(counts, "micro", "micro_f1"),
        "weighted_f1": f1(counts, "weighted", "weighted_f1"),
        "matthews": matthews(counts),
    }


def accuracy(gold: Sequence[str], predicted: Sequence[str | None]) -> Score:
    check_paired(gold=gold, predicted=predicted)
    right = [label == wanted for wanted, label in zip(gold, predicted, strict=True)]
    return proportion("accuracy", right, sum(label is None for label in predicted))


def scores_by_class(
    gold: Sequence[str], predicted: Sequence[str | None], bootstrap: Bootstrap
) -> dict[str, KindScores]:
    """Of every class in gold or prediction."""
    return scores_by_kind(count_labels(gold, predicted, bootstrap))


def count_labels(gold: Sequence[str], predicted: Sequence[str | None], bootstrap: Bootstrap) -> Counts:
    """What F1 and Matthews are computed from: of one label a text."""
    return count_findings(
        [frozenset([label]) for label in gold],
        [None if label is None else frozenset([label]) for label in predicted],
        str,
        bootstrap,
    )


def matthews(counts: Counts) -> Score:
    """Correlation of gold and predicted classes for any number of them (R_K, Gorodkin 2004).

    Texts without a valid prediction are a predicted class of their own. 0 if all texts are of one gold class, or all
    are given one: then nothing correlates.
    """
    n = counts.resampled.n

    def metric(sums: np.ndarray) -> np.ndarray:
        right, gold, found = parts(sums)
        invalid = n - found.sum(-1)
        covariance = n * right.sum(-1) - (gold * found).sum(-1)
        spread_gold = n**2 - (gold**2).sum(-1)
        spread_found = n**2 - (found**2).sum(-1) - invalid**2
        spread = np.sqrt(spread_gold * spread_found)
        return np.where((spread == 0) & (n > 0), 0.0, ratio(covariance, spread))

    return counts.resampled.score("matthews", metric, "undefined:0")


@dataclass(frozen=True)
class Confusion:
    """counts[i, j]: texts of class i given class j; invalid[i]: texts of class i without a valid prediction."""

    labels: tuple[str, ...]
    counts: np.ndarray
    invalid: np.ndarray


def confusion(gold: Sequence[str], predicted: Sequence[str | None]) -> Confusion:
    """Over classes in gold or prediction, sorted."""
    check_paired(gold=gold, predicted=predicted)
    labels = tuple(sorted({*gold, *(label for label in predicted if label is not None)}))
    number: dict[str | None, int] = {label: k for k, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels) + 1), np.int64)
    for wanted, label in zip(gold, predicted, strict=True):
        table[number[wanted], number.get(label, len(labels))] += 1
    return Confusion(labels, table[:, :-1], table[:, -1])
