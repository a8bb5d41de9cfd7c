"""Log-probabilities of a text that is there already: what `echo` with `logprobs` tells, so that a served model can be evaluated."""

from __future__ import annotations

from typing import Any

import torch

from training.serve.sampling import TokenScore, score_of

CHUNK = 256  # tokens a forward pass: logits of a whole context would be larger than the model


def score_tokens(model: Any, tokens: list[int], num_top: int) -> list[TokenScore | None]:
    """One entry a token, in nats given all before it; None for the first, which has nothing before it.

    The chunks are a matter of memory: each sees the keys and values of those before it.
    """
    scores: list[TokenScore | None] = [None]
    cache = None
    with torch.inference_mode():
        for start in range(0, len(tokens) - 1, CHUNK):
            chunk = tokens[start : min(start + CHUNK, len(tokens) - 1)]
            output = model(input_ids=torch.tensor([chunk]), cache=cache, use_cache=True)
            cache = output.cache
            logprobs_TV = output.logits[0].float().log_softmax(-1)
            following = tokens[start + 1 : start + 1 + len(chunk)]
            scores += [score_of(row_V, token, num_top) for row_V, token in zip(logprobs_TV, following, strict=True)]
    return scores


def nats_of(model: Any, tokens: list[int]) -> float:
    return -sum(score.logprob for score in score_tokens(model, tokens, 0) if score is not None)
