"""Counts of what this replica answered, for the watch over drift: a JSON line a minute, of numbers only (see training/watch)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from training.serve.scoring import nats_of
from training.serve.served import Served
from training.serve.writing import Finish
from training.watch.sketch import TrafficSketch

log = logging.getLogger("nightmill.serve")


class Traffic:
    """folder: `<workspace>/traffic`; None: nothing is counted. score_every: one prompt of so many is scored; 0: none."""

    def __init__(self, folder: Path | None, score_every: int, flush_s: float) -> None:
        self._folder, self._score_every, self._flush_s = folder, score_every, flush_s
        self._sketches: dict[str, TrafficSketch] = {}
        self._seen = 0
        self._scoring: asyncio.Task[None] | None = None

    def answered(self, served: Served, text: str, prompt: list[int], answer: list[int], finish: Finish) -> None:
        if self._folder is None:
            return
        self._seen += 1
        due = self._score_every and self._seen % self._score_every == 0
        if due and len(prompt) > 1 and not served.model.config.is_encoder_decoder and self._scoring is None:
            self._scoring = asyncio.create_task(self._score_and_add(served, text, prompt, answer, finish))
        else:
            self._sketch(served).add(text, prompt, answer, None, finish)

    def error(self, served: Served) -> None:
        if self._folder is not None:
            self._sketch(served).error()

    async def run(self) -> None:
        """A line a minute, until cancelled."""
        while True:
            await asyncio.sleep(self._flush_s)
            await asyncio.to_thread(self.flush)

    async def close(self) -> None:
        if self._scoring is not None:
            with suppress(Exception):
                await self._scoring
        await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Models that nobody asks any more leave after their last line."""
        if self._folder is None:
            return
        now = datetime.now(UTC)
        path = self._folder / now.date().isoformat() / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        for address, sketch in list(self._sketches.items()):
            line = sketch.flush()
            if not line["requests"]:
                self._sketches.pop(address, None)
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab", buffering=0) as stream:
                    stream.write((json.dumps(line) + "\n").encode())
            except OSError as error:
                log.error("counts of traffic were not written: %s", error)

    def _sketch(self, served: Served) -> TrafficSketch:
        address = served.identity.address
        return self._sketches.setdefault(address, TrafficSketch(address))

    async def _score_and_add(
        self, served: Served, text: str, prompt: list[int], answer: list[int], finish: Finish
    ) -> None:
        nats: float | None = None
        served.users += 1
        try:
            nats = await served.aside(nats_of, prompt)
        except Exception as error:  # noqa: BLE001 a count, not an answer
            log.error("a prompt was not scored: %s", type(error).__name__)
        finally:
            served.users -= 1
            self._scoring = None
        self._sketch(served).add(text, prompt, answer, nats, finish)
