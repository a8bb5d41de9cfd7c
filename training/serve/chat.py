"""POST /v1/chat/completions: the next message of a conversation, in the form the model's own template gives it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from training.serve.asking import LONG_TEXT, check_counts, writer_of
from training.serve.bodies import ChatBody
from training.serve.desk import Asked, Desk, usage_of
from training.serve.failures import Refused
from training.serve.logprobs import of_chat
from training.serve.served import Served
from training.serve.writing import Part, check_length, plans_of

log = logging.getLogger("nightmill.serve")
router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, request: Request) -> Response:
    desk: Desk = request.app.state.desk
    served = writer_of(desk, body.model)
    asked_for = body.max_completion_tokens or body.max_tokens
    num_top = (body.top_logprobs or 0) if body.logprobs else None
    check_counts(desk.spec, body.n, asked_for or 1, num_top)
    prompt = await _prompt(served, body)
    wanted = asked_for or _room(served, desk, prompt)
    check_length(served, [prompt], wanted, "messages")
    text = "\n".join(message.for_template()["content"] for message in body.messages)
    asked = Asked(served, [text], [prompt], plans_of(body, [prompt], wanted, num_top))
    if body.stream:
        return await _stream(request, desk, asked, body)
    answers = await desk.whole(request, asked)
    choices = [
        {
            "index": answer.index,
            "message": {"role": "assistant", "content": answer.part.text, "refusal": None},
            "logprobs": of_chat(served, answer.part) if body.logprobs else None,
            "finish_reason": answer.finish,
        }
        for answer in answers
    ]
    usage = usage_of(len(prompt), sum(len(answer.ids) for answer in answers))
    return JSONResponse(_head(served, "chat.completion") | {"choices": choices, "usage": usage})


async def _stream(request: Request, desk: Desk, asked: Asked, body: ChatBody) -> Response:
    head = _head(asked.served, "chat.completion.chunk")
    usage = {"usage": None} if body.usage_wanted else {}

    def event(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return head | {"choices": [choice]} | usage

    def chunk(index: int, part: Part) -> dict[str, Any]:
        delta = {"content": part.text} if part.text or part.finish is None else {}
        return event(index, delta, of_chat(asked.served, part) if body.logprobs else None, part.finish)

    def closing(written: int) -> list[dict[str, Any]]:
        whole = head | {"choices": [], "usage": usage_of(asked.prompt_tokens, written)}
        return [whole] if body.usage_wanted else []

    opening = [event(plan.index, {"role": "assistant", "content": ""}, None, None) for plan in asked.plans]
    return await desk.stream(request, asked, opening, chunk, closing)


def _head(served: Served, kind: str) -> dict[str, Any]:
    identity = served.identity
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
        "model": identity.model, "system_fingerprint": identity.fingerprint,
    }  # fmt: skip


async def _prompt(served: Served, body: ChatBody) -> list[int]:
    if not served.chat_template:
        raise Refused(
            400, f"model {served.identity.model} has no chat template; use /v1/completions, or start the server with "
            "--set chat_template=...", "model", "no_chat_template",
        )  # fmt: skip
    messages = [message.for_template() for message in body.messages]
    try:
        if sum(len(message["content"]) for message in messages) > LONG_TEXT:
            return await asyncio.to_thread(served.encode_chat, messages)
        return served.encode_chat(messages)
    except Exception as error:
        log.warning("a conversation did not fit the template: %s", type(error).__name__)
        raise Refused(
            400,
            "messages: the model's chat template does not take these roles in this order",
            "messages",
            "invalid_value",
        ) from error


def _room(served: Served, desk: Desk, prompt: list[int]) -> int:
    """Where the request does not say: as much as there is room for, within the server's limit."""
    return max(1, min(desk.spec.max_tokens, served.capacity - len(prompt)))
