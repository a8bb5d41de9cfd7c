"""Following the champion: look, load beside the old one, check, switch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from training.champion_pointer import ChampionPointer
from training.serve.hub import Hub, Rejected
from training.serve.measures import Measures
from training.serve.own_thread import in_own_thread
from training.serve.serve_spec import ServeSpec
from training.serve.served import Identity, Served, load_champion

log = logging.getLogger("nightmill.serve")


def identity_of(pointer: ChampionPointer, name: str) -> Identity:
    return Identity(
        name=name, version=pointer.version, address=pointer.address, digest=pointer.digest, fence=pointer.fence
    )


class Follower:
    """read: the champion now, None while there is none. root: the workspace its address is in."""

    def __init__(
        self, read: Callable[[], ChampionPointer | None], root: Path, spec: ServeSpec, hub: Hub, measures: Measures
    ) -> None:
        self.read, self.root, self.spec, self.hub, self.measures = read, root, spec, hub, measures
        self.highest = hub.current.identity.fence
        self._failed: tuple[ChampionPointer, float] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self.spec.poll_s)
            try:
                await self.look()
            except Exception:
                log.exception("the look at the champion failed; the model stays")

    async def look(self) -> None:
        pointer = await asyncio.to_thread(self.read)
        if pointer is None or not self._is_news(pointer):
            return
        if pointer.fence < self.highest or self._same_fence_other_model(pointer):
            self._reject(pointer, "stale fence")
            return
        await self.hub.settled()
        self.highest = pointer.fence
        try:
            new = await self._load(pointer)
        except Exception as error:  # noqa: BLE001 whatever is wrong with the new model, the old one answers
            log.error("champion %s cannot be served, the old model stays: %s", pointer.address, error)
            self._reject(pointer, type(error).__name__)
            return
        self._failed = None
        self.hub.swap(new)
        self.measures.swapped(new.identity)

    async def _load(self, pointer: ChampionPointer) -> Served:
        identity = identity_of(pointer, self.hub.current.identity.name)
        new = await asyncio.to_thread(in_own_thread, partial(load_champion, self.root, identity, self.spec))
        try:
            await new.smoke()
        except BaseException:
            await asyncio.to_thread(new.close)
            raise
        return new

    def _is_news(self, pointer: ChampionPointer) -> bool:
        now = self.hub.current.identity
        if (pointer.digest, pointer.version, pointer.fence) == (now.digest, now.version, now.fence):
            return False
        if self._failed is None or self._failed[0] != pointer:
            return True
        return time.monotonic() - self._failed[1] >= self.spec.retry_s

    def _same_fence_other_model(self, pointer: ChampionPointer) -> bool:
        now = self.hub.current.identity
        return pointer.fence == now.fence and pointer.digest != now.digest

    def _reject(self, pointer: ChampionPointer, why: str) -> None:
        self._failed = pointer, time.monotonic()
        self.hub.rejected = Rejected(address=pointer.address, version=pointer.version, fence=pointer.fence, why=why)
        self.measures.rejected(why)
