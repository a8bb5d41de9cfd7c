"""Where routes meet the model: places, time, counts, and the two ways an answer goes out, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from training.serve.failures import Refused, error_body
from training.serve.hub import Hub
from training.serve.measures import Measures
from training.serve.request_log import CLIENT_GONE, Entry
from training.serve.serve_spec import ServeSpec
from training.serve.served import Served
from training.serve.traffic import Traffic
from training.serve.writing import Finish, Part, Plan, Tally, merged, parts, while_waited_for

DONE = "data: [DONE]\n\n"
Chunk = Callable[[int, Part], dict[str, Any]]  # index of the answer, piece -> what one event says


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    index: int
    part: Part
    ids: list[int]
    finish: Finish


@dataclass(frozen=True)
class Asked:
    """What came in, encoded. texts: of the prompts, for the counts of traffic; plans: answers wanted."""

    served: Served
    texts: list[str]
    prompts: list[list[int]]
    plans: list[Plan]

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    def text_of(self, plan: Plan) -> str:
        return self.texts[plan.index * len(self.prompts) // len(self.plans)]


class Desk:
    def __init__(self, hub: Hub, spec: ServeSpec, measures: Measures, traffic: Traffic) -> None:
        self.hub, self.spec, self.measures, self.traffic = hub, spec, measures, traffic

    async def whole(self, request: Request, asked: Asked) -> list[Answer]:
        """All answers, in order. Raises: Refused; ClientGone if nobody waits."""
        with self.places(asked):
            try:
                work = asyncio.gather(*(self._one(asked, plan) for plan in asked.plans))
                answers = list(await while_waited_for(request, work, self.spec.timeout_s))
            except Refused:
                self.traffic.error(asked.served)
                raise
        self.count(request, asked, sum(len(answer.ids) for answer in answers))
        return answers

    async def _one(self, asked: Asked, plan: Plan) -> Answer:
        tally = Tally()
        async with aclosing(parts(asked.served, plan, tally, stream=False)) as pieces:  # type: ignore[type-var]
            async for part in pieces:
                last = part
        self.traffic.answered(asked.served, asked.text_of(plan), plan.prompt, tally.ids, tally.finish)
        return Answer(plan.index, last, tally.ids, tally.finish)

    async def stream(
        self,
        request: Request,
        asked: Asked,
        opening: list[dict[str, Any]],
        chunk: Chunk,
        closing: Callable[[int], list[dict[str, Any]]],
    ) -> StreamingResponse:
        """opening: events before the first piece. closing: those after the last, by tokens written.

        The first piece is waited for, so that what is refused before it is refused with a status. Raises: Refused.
        """
        events = self._events(request, asked, opening, chunk, closing)
        first = await while_waited_for(request, anext(events), self.spec.timeout_s)

        async def body() -> AsyncIterator[str]:
            async with aclosing(events):  # type: ignore[type-var]
                yield first
                async for event in events:
                    yield event

        return StreamingResponse(body(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _events(
        self,
        request: Request,
        asked: Asked,
        opening: list[dict[str, Any]],
        chunk: Chunk,
        closing: Callable[[int], list[dict[str, Any]]],
    ) -> AsyncIterator[str]:
        tallies = [Tally() for _ in asked.plans]
        streams = [
            parts(asked.served, plan, tally, stream=True) for plan, tally in zip(asked.plans, tallies, strict=True)
        ]
        begun = ended = False
        with self.places(asked):
            try:
                async with aclosing(merged(streams, self.spec.timeout_s)) as pieces:  # type: ignore[type-var]
                    async for number, part in pieces:
                        if not begun:
                            self._first_token(request)
                        before = "" if begun else "".join(map(event_of, opening))
                        begun = True
                        yield before + event_of(chunk(asked.plans[number].index, part))
                ended = True
            except Refused as refused:
                ended = True
                self.traffic.error(asked.served)
                if not begun:
                    raise
                yield event_of(error_body(refused.status, refused.message, code=refused.code))
                return
            finally:
                self.count(request, asked, sum(len(tally.ids) for tally in tallies))
                if not ended:
                    entry_of(request).status = CLIENT_GONE
        for plan, tally in zip(asked.plans, tallies, strict=True):
            self.traffic.answered(asked.served, asked.text_of(plan), plan.prompt, tally.ids, tally.finish)
        yield "".join(map(event_of, closing(sum(len(tally.ids) for tally in tallies)))) + DONE

    @contextmanager
    def places(self, asked: Asked, number: int | None = None) -> Iterator[None]:
        """Hold the model, and a place an answer, or `number`. Raises: Refused, 503, if the server is full."""
        number = len(asked.plans) if number is None else number
        with self.hub.use(asked.served, number):
            self.measures.running.inc(number)
            try:
                yield
            finally:
                self.measures.running.dec(number)

    def _first_token(self, request: Request) -> None:
        seconds = time.perf_counter() - request.state.began
        entry_of(request).first_token_ms = round(seconds * 1000, 1)
        self.measures.first_token.observe(seconds)

    def count(self, request: Request, asked: Asked, written: int) -> None:
        entry = entry_of(request)
        entry.model = asked.served.identity.model
        entry.prompt_tokens, entry.answer_tokens = asked.prompt_tokens, written
        self.measures.tokens.labels("prompt").inc(asked.prompt_tokens)
        self.measures.tokens.labels("answer").inc(written)


def entry_of(request: Request) -> Entry:
    entry: Entry = request.state.entry
    return entry


def event_of(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def usage_of(prompt_tokens: int, answer_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": answer_tokens, "total_tokens": prompt_tokens + answer_tokens,
    }  # fmt: skip
