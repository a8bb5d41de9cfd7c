"""From a prompt in tokens to an answer in text: what completions and chat share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from fastapi import Request

from training.serve.bodies import Generating
from training.serve.failures import Refused
from training.serve.generation import EngineFailed
from training.serve.sampling import Sampling, TokenScore
from training.serve.served import Served
from training.serve.text_stream import Released, TextStream

T = TypeVar("T")
Finish = Literal["stop", "length"]


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Part:
    """A piece of an answer: final text, and the score of each token it came with. finish: of the last piece."""

    text: str
    tokens: list[str]
    scores: list[TokenScore]
    offset: int
    finish: Finish | None = None


@dataclass(frozen=True)
class Plan:
    """One answer to write."""

    index: int
    prompt: list[int]
    sampling: Sampling
    max_new_tokens: int
    stops: tuple[str, ...]


@dataclass
class Tally:
    """Tokens written so far, of one answer; `ids` without those behind a stop string."""

    ids: list[int] = field(default_factory=list)
    finish: Finish = "stop"


def plans_of(body: Generating, prompts: list[list[int]], max_new_tokens: int, num_top: int | None) -> list[Plan]:
    """n answers a prompt, each with a seed of its own, in OpenAI's order: all of the first prompt first."""
    base = random.SystemRandom().getrandbits(63) if body.seed is None else body.seed
    return [
        Plan(
            index=place * body.n + number,
            prompt=prompt,
            sampling=Sampling(body.temperature, body.top_p, base + place * body.n + number, num_top),
            max_new_tokens=max_new_tokens,
            stops=body.stops,
        )
        for place, prompt in enumerate(prompts)
        for number in range(body.n)
    ]


def check_length(served: Served, prompts: list[list[int]], wanted: int, param: str) -> None:
    """Raises: Refused, 400, in OpenAI's words for it."""
    longest = max(len(prompt) for prompt in prompts)
    if longest == 0:
        raise Refused(400, f"{param}: the prompt is empty, and the model has no start token", param, "invalid_value")
    vocabulary = served.model.get_input_embeddings().num_embeddings
    if max(max(prompt) for prompt in prompts if prompt) >= vocabulary:
        raise Refused(400, f"{param}: token ids must be below {vocabulary}", param, "invalid_value")
    room = served.capacity - (wanted if not served.model.config.is_encoder_decoder else 0)
    if longest > room:
        raise Refused(
            400, f"{param}: {longest} tokens of prompt and {wanted} of answer are more than the {served.capacity} this "
            "model has room for; shorten one", param, "context_length_exceeded",
        )  # fmt: skip


async def parts(served: Served, plan: Plan, tally: Tally, stream: bool) -> AsyncIterator[Part]:
    """Pieces of one answer; one piece where nobody asked for a stream. The engine forgets it when the reader stops.

    Raises: Refused, 503, if the engine is gone.
    """
    assert served.engine is not None
    text = TextStream(served.tokenizer, plan.prompt, plan.stops)
    try:
        generation = served.engine.start(plan.prompt, plan.sampling, plan.max_new_tokens, stream or bool(plan.stops))
    except EngineFailed as error:
        raise Refused(503, "the model is not ready; try again shortly", code="engine_failed", retry_after=2) from error
    ended = False
    try:
        async for new in generation.steps():
            for token in new:
                if text.stopped:
                    break
                tally.ids.append(token)
                if token not in served.end_tokens:
                    text.push(token)
            if text.stopped:
                break
            if stream:
                part = _part(text, text.release(), plan.sampling)
                if part.text or part.scores:
                    yield part
        else:
            ended = True
    except EngineFailed as error:
        raise Refused(503, "the model failed; try again", code="engine_failed", retry_after=2) from error
    finally:
        if not ended:
            generation.give_up()
    if len(tally.ids) >= plan.max_new_tokens and tally.ids[-1] not in served.end_tokens and not text.stopped:
        tally.finish = "length"
    yield _part(text, text.finish(), plan.sampling, tally.finish)


def _part(text: TextStream, released: Released, sampling: Sampling, finish: Finish | None = None) -> Part:
    first, last = released.first, released.last
    scores = sampling.scores[first:last]
    tokens = text.pieces(first, last) if scores else []
    return Part(released.text, tokens, scores, text.offset(first), finish)


async def merged(streams: list[AsyncIterator[Part]], seconds: float) -> AsyncIterator[tuple[int, Part]]:
    """Pieces of several answers as they come, each with the number of its stream.

    Raises: what one of them raises; Refused (504) when time is up.
    """
    news: asyncio.Queue[tuple[int, Part | BaseException | None]] = asyncio.Queue()

    async def pump(number: int, stream: AsyncIterator[Part]) -> None:
        try:
            async with aclosing(stream):  # type: ignore[type-var]
                async for part in stream:
                    news.put_nowait((number, part))
            news.put_nowait((number, None))
        except Exception as error:  # noqa: BLE001 raised again where it is read
            news.put_nowait((number, error))

    tasks = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    alarm = asyncio.get_running_loop().call_later(seconds, news.put_nowait, (0, out_of_time(seconds)))
    try:
        left = len(tasks)
        while left:
            number, item = await news.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield number, item
    finally:
        alarm.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def while_waited_for(request: Request, work: Awaitable[T], seconds: float) -> T:
    """Raises: ClientGone when the client hangs up, Refused (504) when time is up; in both cases the work is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise out_of_time(seconds)
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def out_of_time(seconds: float) -> Refused:
    return Refused(504, f"no answer within {seconds:g} s; ask for fewer tokens", code="timeout")


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
