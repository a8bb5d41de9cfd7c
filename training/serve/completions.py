"""POST /v1/completions: text that goes on from a prompt, and scores of texts that are there already."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from training.serve.asking import Prompts, check_counts, encoded, writer_of
from training.serve.bodies import CompletionBody
from training.serve.desk import Answer, Asked, Desk, usage_of
from training.serve.logprobs import of_completion
from training.serve.sampling import TokenScore
from training.serve.scoring import score_tokens
from training.serve.served import Served
from training.serve.text_stream import TextStream
from training.serve.writing import Part, check_length, plans_of, while_waited_for

router = APIRouter()


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Response:
    desk: Desk = request.app.state.desk
    served = writer_of(desk, body.model)
    wanted = desk.spec.default_max_tokens if body.max_tokens is None else body.max_tokens
    check_counts(desk.spec, body.n * len(body.prompts), wanted, body.logprobs)
    prompts = await encoded(served, body.prompts)
    check_length(served, prompts.tokens, wanted, "prompt")
    plans = plans_of(body, prompts.tokens, wanted, body.logprobs)
    asked = Asked(served, prompts.texts, prompts.tokens, plans)
    head = _head(served)
    if body.stream:
        usage = {"usage": None} if body.usage_wanted else {}

        def chunk(index: int, part: Part) -> dict[str, Any]:
            place = len(prompts.texts[index // body.n])
            told = _told(served, part.tokens, list(part.scores), place + part.offset, body.logprobs)
            return head | {"choices": [_choice(index, part.text, told, part.finish)]} | usage

        def closing(written: int) -> list[dict[str, Any]]:
            whole = head | {"choices": [], "usage": usage_of(asked.prompt_tokens, written)}
            return [whole] if body.usage_wanted else []

        return await desk.stream(request, asked, [], chunk, closing)
    echoes = await _echoes(request, desk, asked, body, prompts) if body.echo else None
    answers = await desk.whole(request, asked) if wanted else [_nothing(plan.index) for plan in plans]
    choices = [_whole_choice(served, body, prompts, echoes, answer) for answer in answers]
    usage_now = usage_of(asked.prompt_tokens, sum(len(answer.ids) for answer in answers))
    return JSONResponse(head | {"choices": choices, "usage": usage_now})


def _head(served: Served) -> dict[str, Any]:
    identity = served.identity
    return {
        "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
        "model": identity.model, "system_fingerprint": identity.fingerprint,
    }  # fmt: skip


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _nothing(index: int) -> Answer:
    return Answer(index, Part("", [], [], 0, "length"), [], "length")


def _told(
    served: Served, tokens: list[str], scores: list[TokenScore | None], offset: int, wanted: int | None
) -> dict[str, Any] | None:
    return None if wanted is None else of_completion(served, tokens, scores, offset, wanted)


def _whole_choice(
    served: Served, body: CompletionBody, prompts: Prompts, echoes: list[Echo] | None, answer: Answer
) -> dict[str, Any]:
    part, place = answer.part, answer.index // body.n
    if echoes is None:
        told = _told(served, part.tokens, list(part.scores), len(prompts.texts[place]), body.logprobs)
        return _choice(answer.index, part.text, told, answer.finish)
    echo = echoes[place]
    told = _told(served, echo[0] + part.tokens, [*echo[1], *part.scores], 0, body.logprobs)
    return _choice(answer.index, prompts.texts[place] + part.text, told, answer.finish)


Echo = tuple[list[str], list[TokenScore | None]]  # of a prompt: what each token adds to the text, and its score


async def _echoes(request: Request, desk: Desk, asked: Asked, body: CompletionBody, prompts: Prompts) -> list[Echo]:
    if body.logprobs is None:
        return [([], []) for _ in prompts.tokens]
    with desk.places(asked):
        work = asyncio.gather(*(_echo(asked.served, tokens, prompts, body.logprobs) for tokens in prompts.tokens))
        echoes = list(await while_waited_for(request, work, desk.spec.timeout_s))
    if not body.max_tokens:
        desk.count(request, asked, 0)
    return echoes


async def _echo(served: Served, tokens: list[int], prompts: Prompts, num_top: int) -> Echo:
    """Of a prompt that came as text the start token is not told: it was not in the text."""
    scores = await served.aside(score_tokens, tokens, num_top)
    skip = 1 if prompts.from_text and served.begins(tokens) else 0
    stream = TextStream(served.tokenizer, tokens[:skip])
    for token in tokens[skip:]:
        stream.push(token)
    stream.finish()
    return stream.pieces(0, len(tokens) - skip), scores[skip:]
