"""Precision, recall and F1 of sets with kinds: the label of a text, its labels, or spans in a sentence.

Each item has a set of gold findings and a set of predicted ones; a finding is right if it is in both. For every kind
(a class, a type of span) three numbers are summed over items: right, gold and predicted findings. All averages are
functions of these sums:

- micro: of the sums over all kinds;
- macro: mean of the kinds' F1, over kinds present in gold or prediction. A kind of the label set that never occurs says
  nothing: counted as 0 or as 1 it would move the mean;
- weighted: mean of the kinds' F1 weighted by gold findings.

With gold findings and none predicted precision is 0, and so is recall with predicted ones and no gold. Where there is
neither, precision, recall and F1 are undefined (NaN). An item without a valid prediction has found nothing: a miss.

Shapes: K kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from training.metrics.bootstrap import Bootstrap, Metric, Resampled, resample
from training.metrics.pairing import check_paired
from training.metrics.ratio import ratio
from training.metrics.score import Score

T = TypeVar("T")
Average = Literal["micro", "macro", "weighted"]


@dataclass(frozen=True)
class Counts:
    """Right, gold and predicted findings of each kind, as statistics (..., 3 K): the K right ones first.

    definition: what a finding is, for signatures.
    """

    kinds: tuple[str, ...]
    resampled: Resampled
    definition: str

    def score(self, name: str, metric: Metric, average: str) -> Score:
        return self.resampled.score(name, metric, "|".join(filter(None, (f"average:{average}", self.definition))))

    @property
    def support(self) -> dict[str, int]:
        """Gold findings of each kind."""
        return dict(zip(self.kinds, parts(self.resampled.whole)[1].astype(int).tolist(), strict=True))


@dataclass(frozen=True)
class KindScores:
    """support: gold findings; num_predicted: predicted ones."""

    precision: Score
    recall: Score
    f1: Score
    support: int
    num_predicted: int


def count_findings(
    gold: Sequence[AbstractSet[T]],
    predicted: Sequence[AbstractSet[T] | None],
    kind_of: Callable[[T], str],
    bootstrap: Bootstrap,
    definition: str = "",
) -> Counts:
    """predicted: None for an item without a valid prediction."""
    check_paired(gold=gold, predicted=predicted)
    found: list[AbstractSet[T]] = [items if items is not None else frozenset() for items in predicted]
    right = [g & f for g, f in zip(gold, found, strict=True)]
    kinds = tuple(sorted({kind_of(x) for sets in (gold, found) for items in sets for x in items}))
    columns = [_occurrences(sets, kind_of, kinds) for sets in (right, gold, found)]

    def statistic(counts_N: np.ndarray) -> np.ndarray:
        return np.concatenate([np.bincount(kind, counts_N[item], len(kinds)) for item, kind in columns])

    return Counts(
        kinds, resample(len(gold), statistic, bootstrap, sum(items is None for items in predicted)), definition
    )


def precision(counts: Counts, name: str = "precision") -> Score:
    """Micro-averaged: right findings of all predicted ones."""
    return counts.score(name, lambda s: _precision(*_summed(s)), "micro")


def recall(counts: Counts, name: str = "recall") -> Score:
    """Micro-averaged: right findings of all gold ones."""
    return counts.score(name, lambda s: _recall(*_summed(s)), "micro")


def f1(counts: Counts, average: Average, name: str) -> Score:
    classes = "" if average == "micro" else "|classes:gold-or-predicted"
    return counts.score(name, F1_OF[average], f"{average}{classes}")


def scores_by_kind(counts: Counts) -> dict[str, KindScores]:
    """Named `precision/KIND`, `recall/KIND`, `f1/KIND`."""
    whole = parts(counts.resampled.whole)

    def score(name: str, share: Callable[..., np.ndarray], k: int) -> Score:
        return counts.score(f"{name}/{counts.kinds[k]}", lambda s: share(*(part[..., k] for part in parts(s))), "none")

    return {
        kind: KindScores(
            precision=score("precision", _precision, k),
            recall=score("recall", _recall, k),
            f1=score("f1", _f1, k),
            support=int(whole[1][k]),
            num_predicted=int(whole[2][k]),
        )
        for k, kind in enumerate(counts.kinds)
    }


def micro_f1(sums: np.ndarray) -> np.ndarray:
    return _f1(*_summed(sums))


def macro_f1(sums: np.ndarray) -> np.ndarray:
    right, gold, found = parts(sums)
    present = gold + found > 0
    return ratio(np.where(present, _f1(right, gold, found), 0.0).sum(-1), present.sum(-1))


def weighted_f1(sums: np.ndarray) -> np.ndarray:
    right, gold, found = parts(sums)
    return ratio(np.where(gold > 0, gold * _f1(right, gold, found), 0.0).sum(-1), gold.sum(-1))


F1_OF: dict[Average, Metric] = {"micro": micro_f1, "macro": macro_f1, "weighted": weighted_f1}


def parts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, gold and predicted findings by kind, (..., K) each."""
    right, gold, found = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    return right, gold, found


def _summed(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    right, gold, found = (part.sum(-1) for part in parts(sums))
    return right, gold, found


def _precision(right: np.ndarray, gold: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.where((found == 0) & (gold > 0), 0.0, ratio(right, found))


def _recall(right: np.ndarray, gold: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.where((gold == 0) & (found > 0), 0.0, ratio(right, gold))


def _f1(right: np.ndarray, gold: np.ndarray, found: np.ndarray) -> np.ndarray:
    return ratio(2 * right, gold + found)


def _occurrences(
    sets: Sequence[Iterable[T]], kind_of: Callable[[T], str], kinds: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(item, kind) of every finding, int64 each."""
    number = {kind: k for k, kind in enumerate(kinds)}
    pairs = [(item, number[kind_of(x)]) for item, found in enumerate(sets) for x in found]
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
