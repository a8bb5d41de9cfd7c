"""POST /v1/embeddings and /v1/classifications: models that read a text and answer with numbers."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from training.serve.asking import encoded
from training.serve.bodies import ClassificationBody, EmbeddingBody, TextsBody
from training.serve.desk import Asked, Desk
from training.serve.failures import Refused
from training.serve.heads import Kind, classify, embed
from training.serve.served import Served
from training.serve.writing import check_length, while_waited_for

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, request: Request) -> Response:
    """Vectors of length 1: the mean of the last layer over a text's tokens."""
    served, vectors, used = await _read(request, body, "embedding", embed)

    def form(vector: list[float]) -> list[float] | str:
        return (
            vector
            if body.encoding_format == "float"
            else base64.b64encode(np.array(vector, np.float32).tobytes()).decode()
        )

    data = [{"object": "embedding", "index": i, "embedding": form(vector)} for i, vector in enumerate(vectors)]
    return JSONResponse({"object": "list", "data": data} | _tail(served, used))


@router.post("/v1/classifications")
async def classifications(body: ClassificationBody, request: Request) -> Response:
    """OpenAI has no such route; this one has the shape of vLLM's."""
    served, found, used = await _read(request, body, "classification", classify)
    head = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    return JSONResponse(head | {"data": [{"index": i} | one for i, one in enumerate(found)]} | _tail(served, used))


def _tail(served: Served, used: int) -> dict[str, Any]:
    identity = served.identity
    usage = {"prompt_tokens": used, "total_tokens": used}
    return {"model": identity.model, "system_fingerprint": identity.fingerprint, "usage": usage}


async def _read(
    request: Request, body: TextsBody, kind: Kind, work: Callable[[Any, list[int]], Any]
) -> tuple[Served, list[Any], int]:
    """The model, what it found in each text, tokens read. Raises: Refused."""
    desk: Desk = request.app.state.desk
    served = desk.hub.find(body.model)
    if served.kind != kind:
        raise Refused(
            400, f"model {served.identity.model} is for {served.kind}, not for {kind}", "model", "wrong_endpoint"
        )
    if len(body.inputs) > desk.spec.max_inputs:
        raise Refused(
            400, f"input: more than {desk.spec.max_inputs} texts; send them in parts", "input", "invalid_value"
        )
    prompts = await encoded(served, body.inputs)
    check_length(served, prompts.tokens, 0, "input")
    asked = Asked(served, prompts.texts, prompts.tokens, [])
    with desk.places(asked, 1):
        answers = asyncio.gather(*(served.aside(work, tokens) for tokens in prompts.tokens))
        found = list(await while_waited_for(request, answers, desk.spec.timeout_s))
    desk.count(request, asked, 0)
    return served, found, asked.prompt_tokens
