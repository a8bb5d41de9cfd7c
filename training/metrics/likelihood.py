"""What a model gives to what was written: negative log-likelihood of classes, perplexity of texts.

Nats are natural logarithms. One value that is not finite leaves a score undefined (NaN).

Shapes: N items, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, mean_scores, resample_sums
from training.metrics.pairing import check_paired
from training.metrics.ratio import ratio
from training.metrics.score import Score


def negative_log_likelihood(logits_NC: np.ndarray, gold_N: Sequence[int], bootstrap: Bootstrap) -> Score:
    """Nats of the gold class, mean over texts, from logits: finite also where its probability rounds to 0.

    Raises: DataError if a gold class is no column.
    """
    logits, gold = np.asarray(logits_NC, np.float64), np.asarray(gold_N, np.int64)
    check_paired(logits=logits, gold=gold)
    if len(gold) and not (gold.min() >= 0 and gold.max() < logits.shape[1]):
        raise DataError(f"gold classes from {gold.min()} to {gold.max()} for {logits.shape[1]} columns of logits")
    invalid = int((~np.isfinite(logits).all(axis=1)).sum())
    if invalid:
        nats_N = np.full(len(gold), np.nan)
    else:
        highest_N = logits.max(axis=1, initial=-np.inf)
        log_sum_N = highest_N + np.log(np.exp(logits - highest_N[:, None]).sum(axis=1))
        nats_N = log_sum_N - logits[np.arange(len(gold)), gold]
    return mean_scores({"nll": nats_N}, bootstrap, invalid, "unit:nats")["nll"]


def perplexity(nats: Sequence[float], num_tokens: Sequence[int], bootstrap: Bootstrap) -> Score:
    """exp of nats a token. Items are documents, and each weighs by its tokens.

    Two documents or batches are summed before they are divided: a mean of perplexities, or of means, is another number.
    nats: negative log-likelihood of each document's scored tokens. Raises: DataError if tokens are negative.
    """
    check_paired(nats=nats, num_tokens=num_tokens)
    nats_N, tokens_N = np.asarray(nats, np.float64), np.asarray(num_tokens, np.float64)
    bad = np.flatnonzero(tokens_N < 0)
    if len(bad):
        raise DataError(f"document {bad[0]} has {tokens_N[bad[0]]:g} tokens: wanted the number scored, 0 or more")
    invalid = int((~np.isfinite(nats_N)).sum())
    stats_NS = np.stack([nats_N if not invalid else np.full_like(nats_N, np.nan), tokens_N], axis=-1)
    resampled = resample_sums(stats_NS, bootstrap, invalid)
    return resampled.score("perplexity", lambda sums: np.exp(ratio(sums[..., 0], sums[..., 1])), "weight:token")
