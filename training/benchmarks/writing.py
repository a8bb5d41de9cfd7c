"""Texts written greedily, up to a stopping text, the end token, or a number of tokens.

Prompts of a batch are padded on the left and padding is hidden by a mask made of lengths: padding may have the id of the
end token. Stopping is by text, looked for in what each row has written so far, since a stopping text is rarely a token.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from training.benchmarks.encoding import Encoder, Pair
from training.benchmarks.requests import Generation, Written


def write_all(
    model: PreTrainedModel, encoder: Encoder, requests: Sequence[Generation], batch_tokens: int
) -> list[Written]:
    """In the order of `requests`. A batch has one limit of new tokens; longest prompts first."""
    pairs = [encoder.prompt(r.context, min(r.max_new_tokens, encoder.limit - 1)) for r in requests]
    length = [len(pair.context) + r.max_new_tokens for pair, r in zip(pairs, requests, strict=True)]
    order = sorted(range(len(requests)), key=lambda i: (requests[i].max_new_tokens, length[i]), reverse=True)
    found: dict[int, Written] = {}
    while order:
        new = requests[order[0]].max_new_tokens
        alike = [i for i in order if requests[i].max_new_tokens == new]
        batch = alike[: max(1, batch_tokens // max(1, length[order[0]]))]
        order = [i for i in order if i not in set(batch)]
        texts = _write([pairs[i] for i in batch], [requests[i] for i in batch], model, encoder)
        found.update(zip(batch, texts, strict=True))
    return [found[i] for i in range(len(requests))]


def _write(
    pairs: Sequence[Pair], requests: Sequence[Generation], model: PreTrainedModel, encoder: Encoder
) -> list[Written]:
    longest = max(len(pair.context) for pair in pairs)
    tokens_BT, seen_BT = (torch.zeros((len(pairs), longest), dtype=torch.int64) for _ in range(2))
    for row, pair in enumerate(pairs):
        tokens_BT[row, longest - len(pair.context) :] = torch.tensor(pair.context)
        seen_BT[row, longest - len(pair.context) :] = 1
    watch = _FiniteWatch(len(pairs))
    stops = _StopTexts(encoder, longest, requests)
    with torch.no_grad():
        output_BT = model.generate(
            tokens_BT, attention_mask=seen_BT, do_sample=False, max_new_tokens=min(requests[0].max_new_tokens, encoder.limit - 1),
            pad_token_id=0, logits_processor=LogitsProcessorList([watch]),
            stopping_criteria=StoppingCriteriaList([stops]),
        )  # fmt: skip
    ends = _end_ids(model)
    return [
        _written(
            output_BT[row, longest:].tolist()[: stops.length[row]],
            pair,
            requests[row],
            ends,
            encoder,
            bool(watch.bad_B[row]),
        )
        for row, pair in enumerate(pairs)
    ]


def _written(new: list[int], pair: Pair, request: Generation, ends: set[int], encoder: Encoder, bad: bool) -> Written:
    if bad:
        return Written(None, 0, "length", (*pair.flags, "non_finite"))
    end = next((i for i, token in enumerate(new) if token in ends), None)
    kept = new if end is None else new[:end]
    text = encoder.decoded(pair.context, kept)
    places = [place for stop in request.until if stop and (place := text.find(stop)) >= 0]
    stopped = bool(places) or end is not None
    return Written(text[: min(places)] if places else text, len(kept), "stop" if stopped else "length", pair.flags)


def _end_ids(model: PreTrainedModel) -> set[int]:
    told = model.generation_config.eos_token_id
    told = model.config.eos_token_id if told is None else told
    return set(told) if isinstance(told, list) else set() if told is None else {told}


class _StopTexts(StoppingCriteria):  # type: ignore[misc]
    """A row is done once a stopping text of its own stands in what it wrote. length: tokens up to there; None: not done."""

    def __init__(self, encoder: Encoder, start: int, requests: Sequence[Generation]) -> None:
        self.encoder, self.start = encoder, start
        self.until = [[stop for stop in request.until if stop] for request in requests]
        self.length: list[int | None] = [None] * len(requests)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for row, stops in enumerate(self.until):
            if self.length[row] is None and self._done(new := input_ids[row, self.start :].tolist(), stops):
                self.length[row] = len(new)
        return torch.tensor([length is not None for length in self.length], device=input_ids.device)

    def _done(self, new: list[int], stops: list[str]) -> bool:
        if not stops:
            return False
        text = self.encoder.tokenizer.decode(new, skip_special_tokens=True)
        return any(stop in text for stop in stops)


class _FiniteWatch(LogitsProcessor):  # type: ignore[misc]
    """Remembers rows with a logit that was no number; -inf is how generation itself rules tokens out."""

    def __init__(self, num_rows: int) -> None:
        self.bad_B = torch.zeros(num_rows, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.bad_B |= (torch.isnan(scores) | torch.isposinf(scores)).any(dim=-1).cpu()
        return scores
