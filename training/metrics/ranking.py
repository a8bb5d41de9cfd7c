"""Candidates in an order: MRR, NDCG@k, recall@k of groups; AUC of clicks; accuracy of pairs.

Candidates of equal score have no order. Every metric here is then its mean over all their orders (a half for AUC and
pairs), so neither the order in the file nor a model that scores all alike gains anything.

A group without a relevant candidate (relevance above 0) cannot be ranked well or badly: it is left out of n, and counted
in the signature. Scores that are not finite are the worst there are: a group with one has 0, a pair 0, a clicked row
stands below all others and one not clicked above.

Shapes: M candidates of a group, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, mean_scores, resample
from training.metrics.pairing import check_paired
from training.metrics.score import Score


def ranking_scores(
    groups: Sequence[str], relevance: Sequence[float], scores: Sequence[float], k: int, bootstrap: Bootstrap
) -> dict[str, Score]:
    """mrr, ndcg@k, recall@k: means over groups. One entry a candidate in each list; groups may be interleaved.

    relevance: 0 for irrelevant; above 0 is relevant, and the gain of NDCG as it is (linear).
    Raises: DataError if a relevance is negative or not finite, or k below 1.
    """
    check_paired(groups=groups, relevance=relevance, scores=scores)
    if k < 1:
        raise DataError(f"ranking metrics at k = {k}: k counts candidates from the top, 1 or more")
    relevance_N, scores_N = np.asarray(relevance, np.float64), np.asarray(scores, np.float64)
    bad = np.flatnonzero(~(np.isfinite(relevance_N) & (relevance_N >= 0)))
    if len(bad):
        raise DataError(f"relevance {relevance_N[bad[0]]} of row {bad[0]}: wanted a finite number, 0 or above")
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    judged = [(relevance_N[rows], scores_N[rows]) for rows in rows_of.values() if relevance_N[rows].any()]
    invalid = sum(not np.isfinite(s).all() for _, s in judged)
    values = np.array([_judge(r, s, k) for r, s in judged], np.float64).reshape(-1, 3)
    definition = f"k:{k}|gain:linear|discount:log2|ties:mean|left-out:{len(rows_of) - len(judged)}"
    names = ("mrr", f"ndcg@{k}", f"recall@{k}")
    return mean_scores(dict(zip(names, values.T, strict=True)), bootstrap, invalid, definition)


def _judge(relevance_M: np.ndarray, scores_M: np.ndarray, k: int) -> tuple[float, float, float]:
    if not np.isfinite(scores_M).all():
        return 0.0, 0.0, 0.0
    return reciprocal_rank(relevance_M, scores_M), ndcg(relevance_M, scores_M, k), recall(relevance_M, scores_M, k)


def reciprocal_rank(relevance_M: np.ndarray, scores_M: np.ndarray) -> float:
    """1 / rank of the first relevant candidate."""
    for start, tied in _tied(relevance_M, scores_M):
        size, relevant = len(tied), int((tied > 0).sum())
        if relevant:
            # The first relevant of `size` in random order is at place j in C(size - j, relevant - 1) of the cases.
            cases = [math.comb(size - j, relevant - 1) for j in range(1, size - relevant + 2)]
            return sum(c / (start + j) for j, c in enumerate(cases, 1)) / math.comb(size, relevant)
    return 0.0


def ndcg(relevance_M: np.ndarray, scores_M: np.ndarray, k: int) -> float:
    """Gain discounted by log2(1 + rank) down to rank k, of that of the best order (Järvelin & Kekäläinen 2002)."""
    discount = 1 / np.log2(np.arange(2, len(relevance_M) + 2))
    discount[k:] = 0.0
    gain = sum(tied.mean() * discount[start : start + len(tied)].sum() for start, tied in _tied(relevance_M, scores_M))
    return float(gain / (np.sort(relevance_M)[::-1] @ discount))


def recall(relevance_M: np.ndarray, scores_M: np.ndarray, k: int) -> float:
    """Share of the relevant candidates among the first k."""
    found = sum(
        (tied > 0).sum() * min(max(k - start, 0), len(tied)) / len(tied) for start, tied in _tied(relevance_M, scores_M)
    )
    return float(found / (relevance_M > 0).sum())


def _tied(relevance_M: np.ndarray, scores_M: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """From the best score down: how many stand before, and the relevances of those that share a score."""
    order = np.argsort(-scores_M, kind="stable")
    starts = np.flatnonzero(np.diff(scores_M[order], prepend=np.inf))
    return list(zip(starts.tolist(), np.split(relevance_M[order], starts[1:]), strict=True))


def auc(clicked: Sequence[float], scores: Sequence[float], bootstrap: Bootstrap) -> Score:
    """Chance that a row with a click has a higher score than one without. Items are rows; NaN without both kinds.

    Raises: DataError if a click is not 0 or 1.
    """
    check_paired(clicked=clicked, scores=scores)
    clicked_N, scores_N = np.asarray(clicked, np.float64), np.asarray(scores, np.float64)
    bad = np.flatnonzero(~np.isin(clicked_N, (0.0, 1.0)))
    if len(bad):
        raise DataError(f"click {clicked_N[bad[0]]} of row {bad[0]}: AUC wants 0 or 1")
    finite_N = np.isfinite(scores_N)
    place_N = np.unique(np.where(finite_N, scores_N, np.where(clicked_N == 1, -np.inf, np.inf)), return_inverse=True)[1]

    def statistic(counts_N: np.ndarray) -> np.ndarray:
        hits = np.bincount(place_N, counts_N * clicked_N)
        misses = np.bincount(place_N, counts_N * (1 - clicked_N))
        won = (hits * (np.cumsum(misses) - misses / 2)).sum()
        pairs = hits.sum() * misses.sum()
        return np.array([won / pairs if pairs else np.nan])

    resampled = resample(len(clicked_N), statistic, bootstrap, int((~finite_N).sum()))
    return resampled.score("auc", lambda s: s[..., 0], "ties:half")


def pairwise_accuracy(better: Sequence[float], worse: Sequence[float], bootstrap: Bootstrap) -> Score:
    """Share of pairs whose better member has the higher score. Items are pairs: a preference, or two of a group."""
    check_paired(better=better, worse=worse)
    better_N, worse_N = np.asarray(better, np.float64), np.asarray(worse, np.float64)
    valid_N = np.isfinite(better_N) & np.isfinite(worse_N)
    won_N = np.where(valid_N, (better_N > worse_N) + 0.5 * (better_N == worse_N), 0.0)
    values = {"pairwise_accuracy": won_N}
    return mean_scores(values, bootstrap, int((~valid_N).sum()), "ties:half")["pairwise_accuracy"]
