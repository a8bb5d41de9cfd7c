"""Several labels a text, or none: F1, subset accuracy, cardinality. Items are texts.

`predicted` holds a set of labels for each text, or None where a logit was not finite: no label found, counted invalid.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from training.metrics.bootstrap import Bootstrap, mean_scores
from training.metrics.f1 import count_findings, f1, precision, recall
from training.metrics.pairing import check_paired
from training.metrics.proportion import proportion
from training.metrics.score import Score


def multi_label_scores(
    gold: Sequence[AbstractSet[str]], predicted: Sequence[AbstractSet[str] | None], bootstrap: Bootstrap
) -> dict[str, Score]:
    """micro_f1, macro_f1, weighted_f1, precision, recall (micro), subset_accuracy, cardinality, gold_cardinality."""
    counts = count_findings(gold, predicted, str, bootstrap)
    return {
        "micro_f1": f1(counts, "micro", "micro_f1"),
        "macro_f1": f1(counts, "macro", "macro_f1"),
        "weighted_f1": f1(counts, "weighted", "weighted_f1"),
        "precision": precision(counts),
        "recall": recall(counts),
        "subset_accuracy": subset_accuracy(gold, predicted),
        **cardinality(gold, predicted, bootstrap),
    }


def subset_accuracy(gold: Sequence[AbstractSet[str]], predicted: Sequence[AbstractSet[str] | None]) -> Score:
    """Share of texts given exactly their labels."""
    check_paired(gold=gold, predicted=predicted)
    right = [found is not None and found == wanted for wanted, found in zip(gold, predicted, strict=True)]
    return proportion("subset_accuracy", right, sum(found is None for found in predicted))


def cardinality(
    gold: Sequence[AbstractSet[str]], predicted: Sequence[AbstractSet[str] | None], bootstrap: Bootstrap
) -> dict[str, Score]:
    """Labels a text, predicted and gold: far apart, the threshold is wrong before the model is. Invalid texts have 0."""
    check_paired(gold=gold, predicted=predicted)
    sizes = {
        "cardinality": np.array([len(found) if found is not None else 0 for found in predicted], np.float64),
        "gold_cardinality": np.array([len(wanted) for wanted in gold], np.float64),
    }
    return mean_scores(sizes, bootstrap, sum(found is None for found in predicted), "")
