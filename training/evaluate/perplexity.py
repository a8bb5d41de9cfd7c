"""Nats of documents under a model: every token scored exactly once, beginning-of-text as context and never scored.

Shapes: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) of one document (with its beginning-of-text token at 0); those from `scored` on count."""

    document: int
    start: int
    scored: int
    end: int


def windows_of(document: int, length: int, context: int, overlap: int) -> list[Window]:
    """Cover tokens 1 .. length-1 once each, in windows of at most `context` tokens.

    A later window starts `overlap` tokens before its first scored one, so that no token is predicted from nothing.
    """
    assert 0 < overlap < context
    windows = []
    start, scored = 0, 1
    while scored < length:
        end = min(start + context, length)
        windows.append(Window(document, start, scored, end))
        start, scored = end - overlap, end
    return windows


@dataclass(frozen=True)
class TokenScores:
    """One document under a model that tells the next token. nats: the sum of -ln p over its tokens.

    Of each token, (T,): confidence float32, probability of the likeliest token; right bool, whether it is the one that came;
    square float32, squared distance of all probabilities from it (Brier), 0 to 2. Empty where the model tells no next token.
    """

    nats: float
    confidence: np.ndarray
    right: np.ndarray
    square: np.ndarray


NO_TOKENS = (np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, np.float32))


def score_documents(
    model: nn.Module, documents: Sequence[Sequence[int]], bos_id: int, context: int, overlap: int, batch_tokens: int
) -> list[float]:
    """Nats of each document (its ids without special tokens): the sum of -ln p over all of them.

    Windows are batched by length, shortest first, padded on the right; causal attention keeps padding out of every
    scored position, so results do not depend on the batch size beyond rounding.
    """
    parts = _by_document(model, documents, bos_id, context, overlap, batch_tokens, _nats)
    return [_summed(values) for values in parts]


def score_tokens(
    model: nn.Module, documents: Sequence[Sequence[int]], bos_id: int, context: int, overlap: int, batch_tokens: int
) -> list[TokenScores]:
    """As `score_documents`, the same nats, and what each token shows of the model's confidence."""
    parts = _by_document(model, documents, bos_id, context, overlap, batch_tokens, _token_scores)
    return [
        TokenScores(
            _summed([part.nats for part in values]),
            *(
                np.concatenate([getattr(part, name) for part in values] or [empty])
                for name, empty in zip(("confidence", "right", "square"), NO_TOKENS, strict=True)
            ),
        )
        for values in parts
    ]


def _summed(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


def _by_document(
    model: nn.Module, documents: Sequence[Sequence[int]], bos_id: int, context: int, overlap: int, batch_tokens: int,
    measure: Callable[[Tensor, Tensor, Window], T],
) -> list[list[T]]:  # fmt: skip
    """What `measure` says of each document's windows, in order of place: a sum of them does not depend on the batches."""
    texts = [[bos_id, *ids] for ids in documents]
    windows = [w for d, ids in enumerate(texts) for w in windows_of(d, len(ids), context, overlap)]
    windows.sort(key=lambda w: (w.end - w.start, w.document, w.start))
    parts: dict[tuple[int, int], T] = {}
    for batch in batched(windows, batch_tokens):
        for window, value in zip(batch, _measured(model, batch, texts, measure), strict=True):
            parts[window.document, window.start] = value
    found: list[list[T]] = [[] for _ in texts]
    for (document, _), value in sorted(parts.items(), key=lambda part: part[0]):
        found[document].append(value)
    return found


def batched(windows: Sequence[Window], batch_tokens: int) -> list[list[Window]]:
    """Consecutive windows such that (longest x number) stays within batch_tokens, at least one each."""
    batches: list[list[Window]] = []
    for window in windows:
        longest = window.end - window.start  # ascending order: this one is the longest so far
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches


def _measured(
    model: nn.Module,
    batch: Sequence[Window],
    texts: Sequence[Sequence[int]],
    measure: Callable[[Tensor, Tensor, Window], T],
) -> list[T]:
    longest = max(w.end - w.start for w in batch)
    tokens_BT = torch.zeros((len(batch), longest), dtype=torch.int64)
    for row, window in enumerate(batch):
        tokens_BT[row, : window.end - window.start] = torch.tensor(texts[window.document][window.start : window.end])
    with torch.no_grad():
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        return [measure(logits_BTV[row], tokens_BT[row], window) for row, window in enumerate(batch)]


def _scored(logits_TV: Tensor, tokens_T: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Logits (at least float32) and tokens of the window's scored places."""
    first, last = window.scored - window.start, window.end - window.start
    logits_TV = logits_TV[first - 1 : last - 1]
    return logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)), tokens_T[first:last]


def _nats(logits_TV: Tensor, tokens_T: Tensor, window: Window) -> float:
    losses = F.cross_entropy(*_scored(logits_TV, tokens_T, window), reduction="none")
    return float(losses.double().sum())


def _token_scores(logits_TV: Tensor, tokens_T: Tensor, window: Window) -> TokenScores:
    logits_TV, tokens_T = _scored(logits_TV, tokens_T, window)
    losses = F.cross_entropy(logits_TV, tokens_T, reduction="none")
    shares_TV = torch.softmax(logits_TV, dim=-1)
    confidence, likeliest = shares_TV.max(dim=-1)
    square = shares_TV.square().sum(dim=-1) - 2 * torch.exp(-losses) + 1
    return TokenScores(
        float(losses.double().sum()), confidence.clamp(max=1).float().numpy(), (likeliest == tokens_T).numpy(),
        square.float().numpy(),
    )  # fmt: skip


def perplexity(nats: float, num_tokens: int) -> float:
    """exp of nats a token; the mean is over tokens, never over batches or windows."""
    return math.exp(nats / num_tokens)


def bits_per_byte(nats: float, num_bytes: int) -> float:
    return nats / (num_bytes * math.log(2))
