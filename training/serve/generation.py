"""One answer being written: its tokens arrive on the event loop, and it can be given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

from training.serve.sampling import Sampling


class EngineFailed(Exception):
    """The engine could not go on with this answer, or is gone."""


@dataclass(eq=False)
class Generation:
    """sampling keeps the scores of tokens. `arrived` and `failed` are called on the loop that waits."""

    sampling: Sampling
    give_up: Callable[[], None]
    tokens: list[int] = field(default_factory=list)
    _done: bool = False
    _failure: str | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def arrived(self, tokens: list[int], done: bool) -> None:
        """tokens: all of the answer so far."""
        self.tokens, self._done = tokens, done
        self._news.set()

    def failed(self, why: str) -> None:
        self._failure, self._done = why, True
        self._news.set()

    async def steps(self) -> AsyncIterator[list[int]]:
        """New tokens, several at a time where the reader is slower than the model. Raises: EngineFailed."""
        told = 0
        while True:
            await self._news.wait()
            self._news.clear()
            if self._failure is not None:
                raise EngineFailed(self._failure)
            new, told = self.tokens[told:], len(self.tokens)
            if new:
                yield new
            if self._done:
                return


class Engine(Protocol):
    """Writes answers. Everything but `close` is called on the event loop.

    capacity: tokens of prompt and answer together, at most.
    """

    capacity: int

    def start(self, prompt: list[int], sampling: Sampling, max_new_tokens: int, every_token: bool) -> Generation:
        """every_token: tell of each; otherwise once, at the end. Raises: EngineFailed if the engine is gone."""
        ...

    def is_alive(self) -> bool: ...

    def close(self) -> None:
        """Ends the engine; blocks until its thread is gone."""
        ...
