"""Which model answers. New requests go to the newest; each keeps the model it began on until its last token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from spark_jobs.manifests import Frozen
from training.serve.failures import Refused
from training.serve.served import Served

LOOK_S = 0.05  # between two looks whether an old model has ended what it began

log = logging.getLogger("nightmill.serve")


class Rejected(Frozen):
    """A champion that is not followed. why: the kind of failure; its words are in the log of the server."""

    address: str
    version: str
    fence: int
    why: str


class Hub:
    """One replica's models: the one that answers, and old ones that still end what they began."""

    def __init__(self, first: Served, max_running: int) -> None:
        """max_running: answers written and waiting, at most."""
        self.current, self.max_running = first, max_running
        self.rejected: Rejected | None = None
        self.swaps = 0
        self.running = 0
        self.draining = False
        self._closing: set[asyncio.Task[None]] = set()

    def find(self, name: str) -> Served:
        """By the pipeline's name, or by the whole name of the version that answers now. Names are compared, never opened.

        Raises: Refused, 404.
        """
        identity = self.current.identity
        if name in (identity.name, identity.model):
            return self.current
        raise Refused(404, "no such model here; GET /v1/models lists what there is", "model", "model_not_found")

    @contextmanager
    def use(self, served: Served, num_answers: int) -> Iterator[None]:
        """Hold the model, and `num_answers` places. Raises: Refused, 503, if there are not so many."""
        if self.running + num_answers > self.max_running:
            raise Refused(503, "the server is full; try again shortly", code="overloaded", retry_after=1)
        self.running += num_answers
        served.users += 1
        try:
            yield
        finally:
            self.running -= num_answers
            served.users -= 1

    def swap(self, new: Served) -> None:
        """From now on `new` answers; the old model goes once it has ended what it began."""
        old, self.current = self.current, new
        self.rejected = None
        self.swaps += 1
        task = asyncio.create_task(self._retire(old))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        log.warning("model %s answers now, %s before", new.identity.model, old.identity.model)

    async def settled(self) -> None:
        """Until only one model is held: two at a time are enough memory."""
        while self._closing:
            await asyncio.wait(set(self._closing))

    async def close(self) -> None:
        await self.settled()
        await asyncio.to_thread(self.current.close)

    async def _retire(self, old: Served) -> None:
        while old.users:
            await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(old.close)
