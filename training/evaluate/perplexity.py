"""Nats of documents under a model: every token scored exactly once, beginning-of-text as context and never scored.

Shapes: B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def score_documents(
    model: nn.Module, documents: Sequence[Sequence[int]], bos_id: int, context: int, overlap: int, batch_tokens: int
) -> list[float]:
    """Nats of each document (its ids without special tokens): the sum of -ln p over all of them.

    Windows are batched by length, shortest first, padded on the right; causal attention keeps padding out of every
    scored position, so results do not depend on the batch size beyond rounding.
    """
    texts = [[bos_id, *ids] for ids in documents]
    windows = [w for d, ids in enumerate(texts) for w in windows_of(d, len(ids), context, overlap)]
    windows.sort(key=lambda w: (w.end - w.start, w.document, w.start))
    nats = [0.0] * len(texts)
    parts: dict[tuple[int, int], float] = {}
    for batch in batched(windows, batch_tokens):
        for window, value in zip(batch, _window_nats(model, batch, texts), strict=True):
            parts[window.document, window.start] = value
    for (document, _), value in sorted(parts.items()):  # in order of place: the sum does not depend on the batches
        nats[document] += value
    return nats


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


def _window_nats(model: nn.Module, batch: Sequence[Window], texts: Sequence[Sequence[int]]) -> list[float]:
    longest = max(w.end - w.start for w in batch)
    tokens_BT = torch.zeros((len(batch), longest), dtype=torch.int64)
    for row, window in enumerate(batch):
        tokens_BT[row, : window.end - window.start] = torch.tensor(texts[window.document][window.start : window.end])
    with torch.no_grad():
        logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    return [_nats(logits_BTV[row], tokens_BT[row], window) for row, window in enumerate(batch)]


def _nats(logits_TV: Tensor, tokens_T: Tensor, window: Window) -> float:
    first, last = window.scored - window.start, window.end - window.start
    logits_TV = logits_TV[first - 1 : last - 1]
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    losses = F.cross_entropy(logits_TV, tokens_T[first:last], reduction="none")
    return float(losses.double().sum())


def perplexity(nats: float, num_tokens: int) -> float:
    """exp of nats a token; the mean is over tokens, never over batches or windows."""
    return math.exp(nats / num_tokens)


def bits_per_byte(nats: float, num_bytes: int) -> float:
    return nats / (num_bytes * math.log(2))
