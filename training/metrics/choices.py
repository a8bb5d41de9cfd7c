"""Several texts to choose from, by their log-likelihoods: accuracy raw, by character and by byte. Items are questions.

Short choices have high likelihood for being short. `accuracy_norm` divides by the characters of a choice as written,
without a delimiter before it, `accuracy_bytes` by its UTF-8 bytes: they differ outside ASCII, and papers say one and mean
the other. The first of equal choices is taken. A question with a likelihood that is not finite is wrong: `argmax` would
answer it with the first choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spark_jobs.errors import DataError
from training.metrics.pairing import check_paired
from training.metrics.proportion import proportion
from training.metrics.score import Score

LENGTHS: dict[str, Callable[[str], int]] = {
    "accuracy": lambda text: 1,
    "accuracy_norm": len,
    "accuracy_bytes": lambda text: len(text.encode()),
}


def choice_scores(
    likelihoods: Sequence[Sequence[float]], choices: Sequence[Sequence[str]], gold: Sequence[int]
) -> dict[str, Score]:
    """accuracy, accuracy_norm, accuracy_bytes.

    likelihoods: nats, log p(choice | question). gold: position of the right choice.
    Raises: DataError if a choice is empty, their number differs from that of likelihoods, or gold is none of them.
    """
    check_paired(likelihoods=likelihoods, choices=choices, gold=gold)
    for item, (nats, texts, right) in enumerate(zip(likelihoods, choices, gold, strict=True)):
        _check(item, nats, texts, right)
    finite = [bool(np.isfinite(nats).all()) for nats in likelihoods]
    scores = {}
    for name, length in LENGTHS.items():
        hits = [
            known and int(np.argmax([n / length(text) for n, text in zip(nats, texts, strict=True)])) == wanted
            for known, nats, texts, wanted in zip(finite, likelihoods, choices, gold, strict=True)
        ]
        scores[name] = proportion(name, hits, finite.count(False), "ties:first")
    return scores


def _check(item: int, nats: Sequence[float], texts: Sequence[str], right: int) -> None:
    if len(nats) != len(texts) or not 0 <= right < len(texts):
        raise DataError(
            f"question {item} has {len(texts)} choices, {len(nats)} likelihoods and answer {right}: "
            "wanted a likelihood for each choice, and the position of one of them"
        )
    if not all(texts):
        raise DataError(f"question {item} has an empty choice: it has no length to divide by, check the rows")
