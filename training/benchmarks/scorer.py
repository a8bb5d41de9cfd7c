"""Requests to a causal model -> answers, in the order they were asked, the same for any batch size.

Equal requests are asked once. Rows are batched by length, longest first, so that a batch that does not fit in memory is
the first; padded on the right, where causal attention keeps padding out of every position that counts.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from spark_jobs.errors import RequestError
from training.benchmarks.encoding import Beginning, Encoder, Pair, encoder_of
from training.benchmarks.requests import Answer, Continuation, Generation, Likelihood, Request, Rolling, Written
from training.benchmarks.writing import write_all
from training.evaluate.perplexity import score_documents

A = TypeVar("A")
R = TypeVar("R")
ROLLING_OVERLAP = 64  # tokens that a later window of a long text sees again, unscored
DEFAULT_LIMIT = 2048  # of a model that names none
MOST_LOGITS = 1 << 26  # of a batch: 256 MB in single precision, more is slower for being written and read


@dataclass(frozen=True)
class Scorer:
    """batch_tokens: positions computed at once; changes speed, not numbers."""

    model: PreTrainedModel
    encoder: Encoder
    batch_tokens: int = 4096
    overlap: int = field(default=ROLLING_OVERLAP)

    @property
    def positions(self) -> int:
        """Of a batch: fewer than asked for where the vocabulary is large."""
        return max(1, min(self.batch_tokens, MOST_LOGITS // int(self.model.config.get_text_config().vocab_size)))

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in their order; equal ones are asked once."""
        asked = list(dict.fromkeys(requests))
        continuations = [r for r in asked if isinstance(r, Continuation)]
        rolling = [r for r in asked if isinstance(r, Rolling)]
        generations = [r for r in asked if isinstance(r, Generation)]
        found: dict[Request, Answer] = {}
        found.update(zip(continuations, self.likelihoods(continuations), strict=True))
        found.update(zip(rolling, self.rolling(rolling), strict=True))
        found.update(zip(generations, self.written(generations), strict=True))
        return [found[request] for request in requests]

    def likelihoods(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        pairs = [self.encoder.pair(r.context, r.continuation) for r in requests]
        answers = [Likelihood(math.nan, len(pair.continuation), False, pair.flags) for pair in pairs]
        askable = [i for i, pair in enumerate(pairs) if pair.context]
        scored = in_batches(
            [pairs[i] for i in askable], lambda pair: len(pair.ids) - 1, self.positions, self._likelihoods
        )
        for i, answer in zip(askable, scored, strict=True):
            answers[i] = answer
        return answers

    def rolling(self, requests: Sequence[Rolling]) -> list[Likelihood]:
        """Every token of a text scored once; the beginning token is before the first, and only there."""
        texts = [self.encoder.text(r.text) for r in requests]
        overlap = min(self.overlap, self.encoder.limit // 2)
        nats = score_documents(self.model, texts, self.encoder.begin_id, self.encoder.limit, overlap, self.batch_tokens)
        return [
            Likelihood(-value, len(ids), False, () if math.isfinite(value) else ("non_finite",))
            for value, ids in zip(nats, texts, strict=True)
        ]

    def written(self, requests: Sequence[Generation]) -> list[Written]:
        return write_all(self.model, self.encoder, requests, self.batch_tokens)

    def _likelihoods(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        longest = max(len(pair.ids) for pair in pairs) - 1  # the last token is predicted, never seen
        tokens_BT = torch.zeros((len(pairs), longest), dtype=torch.int64)
        for row, pair in enumerate(pairs):
            tokens_BT[row, : len(pair.ids) - 1] = torch.tensor(pair.ids[:-1])
        first = min(len(pair.context) for pair in pairs) - 1  # the head computes no position before it
        with torch.no_grad():
            logits_BTV = logits_from(self.model, tokens_BT, first)
        return [_likelihood(logits_BTV[row], pair, first) for row, pair in enumerate(pairs)]


def logits_from(model: PreTrainedModel, tokens_BT: Tensor, first: int) -> Tensor:
    """Logits of the positions from `first` on."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept = tokens_BT.shape[1] - first
        logits_BTV: Tensor = model(input_ids=tokens_BT, use_cache=False, logits_to_keep=kept).logits
        return logits_BTV
    whole_BTV: Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return whole_BTV[:, first:]


def _likelihood(logits_TV: Tensor, pair: Pair, first: int) -> Likelihood:
    start = len(pair.context) - 1 - first
    logits_TV = logits_TV[start : start + len(pair.continuation)]
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    wanted_T = torch.tensor(pair.continuation)
    value = -float(F.cross_entropy(logits_TV, wanted_T, reduction="none").double().sum())
    if not torch.isfinite(logits_TV).all() or not math.isfinite(value):
        return Likelihood(math.nan, len(pair.continuation), False, (*pair.flags, "non_finite"))
    greedy = bool((logits_TV.argmax(dim=-1) == wanted_T).all())
    return Likelihood(value, len(pair.continuation), greedy, pair.flags)


def in_batches(
    items: Sequence[R], length: Callable[[R], int], batch_tokens: int, ask: Callable[[Sequence[R]], Sequence[A]]
) -> list[A]:
    """Answers in the order of `items`. A batch is as many items as stay, padded to its longest, within batch_tokens; at
    least one. Longest first; items of one length in their own order."""
    order = sorted(range(len(items)), key=lambda i: -length(items[i]))
    found: dict[int, A] = {}
    while order:
        room = max(1, batch_tokens // max(1, length(items[order[0]])))
        batch, order = order[:room], order[room:]
        found.update(zip(batch, ask([items[i] for i in batch]), strict=True))
    return [found[i] for i in range(len(items))]


def scorer_of(model: PreTrainedModel, folder: Path, beginning: Beginning, batch_tokens: int) -> Scorer:
    """Raises: RequestError for a model that does not write left to right."""
    if model.config.is_encoder_decoder or not model.can_generate():
        raise RequestError(
            f"{folder}: {type(model).__name__} does not write left to right, which benchmarks want; "
            "score it by bits per byte (evaluate without benchmarks)"
        )
    limit = getattr(model.config, "max_position_embeddings", None) or DEFAULT_LIMIT
    return Scorer(model, encoder_of(folder, int(limit), beginning), batch_tokens)
