"""What routes check before a model is asked, and how they encode."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from training.serve.desk import Desk
from training.serve.failures import Refused
from training.serve.serve_spec import ServeSpec
from training.serve.served import Served

LONG_TEXT = 8192  # characters; encoding more would hold up the others, so it goes to a thread


@dataclass(frozen=True)
class Prompts:
    texts: list[str]
    tokens: list[list[int]]
    from_text: bool


def writer_of(desk: Desk, name: str) -> Served:
    """Raises: Refused for a name that is not served, or a model that does not write."""
    served = desk.hub.find(name)
    if served.kind != "generation":
        where = {"classification": "/v1/classifications", "embedding": "/v1/embeddings"}[served.kind]
        raise Refused(400, f"model {served.identity.model} does not write; ask {where}", "model", "wrong_endpoint")
    return served


def check_counts(spec: ServeSpec, num_answers: int, max_tokens: int, num_top: int | None) -> None:
    """Raises: Refused, 400, for more than the server allows."""
    for name, value, limit in (
        ("n", num_answers, spec.max_choices),
        ("max_tokens", max_tokens, spec.max_tokens),
        ("logprobs", num_top or 0, spec.max_logprobs),
    ):
        if value > limit:
            raise Refused(
                400, f"{name}: {value} is above {limit}, the most that this server allows", name, "invalid_value"
            )


async def encoded(served: Served, inputs: list[str] | list[list[int]]) -> Prompts:
    """Texts by the model's tokenizer; tokens as they are."""
    texts = [one for one in inputs if isinstance(one, str)]
    if len(texts) != len(inputs):
        tokens = [one for one in inputs if not isinstance(one, str)]
        return Prompts([served.tokenizer.decode(one) for one in tokens], tokens, from_text=False)
    if sum(map(len, texts)) > LONG_TEXT:
        return Prompts(texts, await asyncio.to_thread(lambda: [served.encode(text) for text in texts]), from_text=True)
    return Prompts(texts, [served.encode(text) for text in texts], from_text=True)
