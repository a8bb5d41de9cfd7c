"""Clients of benchmarks/serve.py: so many at once, each asking again as soon as it is answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx


@dataclass
class Load:
    """Of one round. seconds: from the first request to the last answer; latencies and firsts in seconds a request."""

    seconds: float = 0.0
    tokens: int = 0
    latencies: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


async def whole_answers(url: str, model: str, prompts: Sequence[str], clients: int, max_tokens: int) -> Load:
    """Each prompt asked once, greedily, by `clients` at once."""
    load, waiting = Load(), list(reversed(prompts))

    async def ask(client: httpx.AsyncClient) -> None:
        while waiting:
            body = {"model": model, "prompt": waiting.pop(), "max_tokens": max_tokens, "temperature": 0}
            began = time.perf_counter()
            answer = await client.post(f"{url}/v1/completions", json=body)
            load.latencies.append(time.perf_counter() - began)
            if answer.status_code != 200:
                load.failures += 1
            else:
                load.tokens += answer.json()["usage"]["completion_tokens"]

    await _by_all(ask, clients, load)
    return load


async def streams(url: str, model: str, prompts: Sequence[str], clients: int, max_tokens: int) -> Load:
    """The same as streams; `firsts`: until the first piece of text."""
    load, waiting = Load(), list(reversed(prompts))

    async def ask(client: httpx.AsyncClient) -> None:
        while waiting:
            body = {
                "model": model, "prompt": waiting.pop(), "max_tokens": max_tokens, "temperature": 0, "stream": True,
            }  # fmt: skip
            began, first = time.perf_counter(), 0.0
            async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if not first and line.startswith("data: {") and json.loads(line[6:])["choices"][0]["text"]:
                        first = time.perf_counter() - began
            load.latencies.append(time.perf_counter() - began)
            load.firsts.append(first or load.latencies[-1])

    await _by_all(ask, clients, load)
    return load


async def _by_all(ask: object, clients: int, load: Load) -> None:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(ask(client) for _ in range(clients)))  # type: ignore[operator]
    load.seconds = time.perf_counter() - began


async def answers(url: str, seconds: float) -> bool:
    """Whether the server answers within `seconds`."""
    deadline = time.perf_counter() + seconds
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        while time.perf_counter() < deadline:
            try:
                if (await client.get(f"{url}/health")).status_code == 200:
                    return True
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.2)
    return False
