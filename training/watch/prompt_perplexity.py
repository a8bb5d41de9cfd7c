"""Perplexity of live prompts over that of held-out documents, at the lengths that the prompts have.

A short text is harder to predict token by token than a long one: its tokens have less before them. So held-out documents
are cut to the lengths of the window's prompts before the two are compared; else every chat would look like a drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.watch.bins import LENGTH_EDGES
from training.watch.sketch import TrafficLine


@dataclass(frozen=True)
class Ratio:
    """value: exp(nats a token of prompts - nats a token expected). low, high: 95 % interval. p: one-sided, of a ratio as
    large where prompts are drawn as held-out documents are."""

    value: float
    low: float
    high: float
    p: float


def perplexity_ratio(window: TrafficLine, nats: Sequence[NDArray[np.float32]]) -> Ratio:
    """nats: one array a held-out document, a number a token.

    With e = nats - expected x tokens of one document, cut, the sum over n prompts has variance sum of n_b var(e_b) over
    bins of length b, and that of the documents themselves (n / D)^2 sum of (mean e)^2: delta method for a ratio of sums.
    """
    counts = np.array(window.prompt_tokens, np.float64)
    counts *= sum(window.prompt_nats_per_token) / counts.sum()  # where the server scored some of the prompts
    bins = np.flatnonzero(counts)
    sizes_D = np.array([len(n) for n in nats])
    sums = [np.concatenate(([0.0], np.cumsum(n, dtype=np.float64))) for n in nats]
    tokens_BD = np.stack([np.minimum(typical_length(int(b)), sizes_D) for b in bins]).astype(np.float64)
    nats_BD = np.stack([[s[int(t)] for s, t in zip(sums, tokens_D, strict=True)] for tokens_D in tokens_BD])
    n_B = counts[bins]
    expected = float((n_B @ nats_BD).sum() / max((n_B @ tokens_BD).sum(), 1.0))
    rest_BD = nats_BD - expected * tokens_BD
    own = float(n_B @ rest_BD.var(axis=1, ddof=1))
    reference = float(((n_B @ rest_BD) ** 2).sum()) / len(nats) ** 2
    tokens = float((n_B @ tokens_BD).sum() / len(nats))  # in a window drawn from the documents
    error = math.sqrt(own + reference) / tokens
    difference = window.prompt_nats / window.prompt_scored_tokens - expected
    low, high = difference - 1.96 * error, difference + 1.96 * error
    p = 0.5 * math.erfc(difference / error / math.sqrt(2)) if error else float(difference <= 0)
    return Ratio(_exp(difference), _exp(low), _exp(high), p)


def typical_length(number: int) -> int:
    """Tokens of a prompt in this bin: the middle of its edges, at least 1."""
    low = LENGTH_EDGES[number]
    high = LENGTH_EDGES[number + 1] - 1 if number + 1 < len(LENGTH_EDGES) else low
    return max(1, (low + high) // 2)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
