"""Nats of documents under models that do not write left to right, every token scored exactly once.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.evaluate.perplexity import Window, batched, windows_of

FOLDS = 7  # one token in seven is hidden at a time, about the share that was in training


def score_masked(
    model: nn.Module, documents: Sequence[Sequence[int]], bos_id: int, mask_id: int, context: int, overlap: int,
    batch_tokens: int,
) -> list[float]:  # fmt: skip
    """Nats of each token given the others of its window, when every seventh is hidden: a pseudo-likelihood.

    Hiding one token at a time (Salazar et al. 2020, arXiv:1910.14659) costs a pass a token; seven passes hide each
    token once. Comparable between masked models only: both sides of a token are seen.
    """
    texts = [[bos_id, *ids] for ids in documents]
    windows = [w for d, ids in enumerate(texts) for w in windows_of(d, len(ids), context, overlap)]
    windows.sort(key=lambda w: (w.end - w.start, w.document, w.start))
    parts: dict[tuple[int, int], float] = {}
    for batch in batched(windows, max(1, batch_tokens // FOLDS)):
        for window, value in zip(batch, _hidden_nats(model, batch, texts, mask_id), strict=True):
            parts[window.document, window.start] = value
    return _sums(parts, len(texts))


def _hidden_nats(
    model: nn.Module, batch: Sequence[Window], texts: Sequence[Sequence[int]], mask_id: int
) -> list[float]:
    longest = max(w.end - w.start for w in batch)
    shape = (len(batch), FOLDS, longest)
    truth, hidden, seen = (
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape),
    )
    folds = torch.arange(FOLDS)[:, None]
    for row, window in enumerate(batch):
        length = window.end - window.start
        places = torch.arange(length)
        truth[row, :, :length] = torch.tensor(texts[window.document][window.start : window.end])
        hidden[row, :, :length] = (places % FOLDS == folds) & (places >= window.scored - window.start)
        seen[row, :, :length] = 1
    tokens = truth.masked_fill(hidden, mask_id)
    with torch.no_grad():
        logits_BTV = model(input_ids=tokens.flatten(0, 1), attention_mask=seen.flatten(0, 1)).logits
    losses = _losses(logits_BTV, truth.flatten(0, 1)).view(shape)
    return (losses * hidden).sum(dim=(1, 2)).tolist()


def score_divided(
    model: nn.Module, documents: Sequence[Sequence[int]], bos_id: int, context: int, batch_tokens: int
) -> list[float]:
    """Nats of each document under an encoder-decoder: it writes half a context, having read the half before.

    A product of conditional probabilities of all tokens, so it compares with a causal model of so short a memory.
    """
    size = max(1, context // 2)
    pieces = [
        Window(document, start, start, min(start + size, len(ids)))
        for document, ids in enumerate(documents)
        for start in range(0, len(ids), size)
    ]
    pieces.sort(key=lambda p: (p.end - p.start, p.document, p.start))
    parts: dict[tuple[int, int], float] = {}
    for batch in batched(pieces, batch_tokens):
        for piece, value in zip(batch, _written_nats(model, batch, documents, bos_id, size), strict=True):
            parts[piece.document, piece.start] = value
    return _sums(parts, len(documents))


def _written_nats(
    model: nn.Module, batch: Sequence[Window], documents: Sequence[Sequence[int]], bos_id: int, size: int
) -> list[float]:
    before = [[bos_id, *documents[p.document][max(0, p.start - size) : p.start]] for p in batch]
    written = [list(documents[p.document][p.start : p.end]) for p in batch]
    source_BT, seen_BT = _padded(before)
    truth_BT, real_BT = _padded(written)
    inputs_BT, _ = _padded([[bos_id, *ids[:-1]] for ids in written])
    with torch.no_grad():
        logits_BTV = model(
            input_ids=source_BT, attention_mask=seen_BT, decoder_input_ids=inputs_BT, use_cache=False
        ).logits
    return (_losses(logits_BTV, truth_BT) * real_BT).sum(dim=1).tolist()


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """int64 (B, T) filled up with 0 on the right, and 1 where there is a token."""
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return tokens, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def _losses(logits_BTV: Tensor, truth_BT: Tensor) -> Tensor:
    """float64 (B, T)"""
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    return F.cross_entropy(logits_BTV.flatten(0, 1), truth_BT.flatten(), reduction="none").view(truth_BT.shape).double()


def _sums(parts: dict[tuple[int, int], float], num_documents: int) -> list[float]:
    """In order of place, so that the sum does not depend on the batches."""
    nats = [0.0] * num_documents
    for (document, _), value in sorted(parts.items()):
        nats[document] += value
    return nats
