"""Log-probabilities in the two shapes that OpenAI's interface has for them. Nats, of the model itself before temperature."""

from __future__ import annotations

import math
from typing import Any

from training.serve.sampling import TokenScore
from training.serve.served import Served
from training.serve.writing import Part

LEAST = -9999.0  # JSON has no infinity; OpenAI's own word for "never"


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST


def of_completion(
    served: Served, tokens: list[str], scores: list[TokenScore | None], offset: int, told: int
) -> dict[str, Any]:
    """offset: characters before the first token. told: 0 tells no alternatives; the token itself is always among them."""
    offsets = [offset]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    tops = [
        None if score is None or not told else _by_text(served, text, score)
        for text, score in zip(tokens, scores, strict=True)
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [None if score is None else finite(score.logprob) for score in scores],
        "top_logprobs": tops if told else None,
        "text_offset": offsets[:-1],
    }


def _by_text(served: Served, text: str, score: TokenScore) -> dict[str, float]:
    found = {text: finite(score.logprob)}
    for token, logprob in score.top:
        if token != score.token:
            found.setdefault(served.token_text(token), finite(logprob))
    return found


def of_chat(served: Served, part: Part) -> dict[str, Any]:
    return {
        "content": [
            _entry(text, score.logprob)
            | {"top_logprobs": [_entry(served.token_text(token), logprob) for token, logprob in score.top]}
            for text, score in zip(part.tokens, part.scores, strict=True)
        ],
        "refusal": None,
    }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode(errors="replace"))}
