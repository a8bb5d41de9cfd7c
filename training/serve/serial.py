"""Answers written one after another by `generate`: for models whose attention does not read the paged cache.

Encoder-decoders, and adapters that live beside the weights (prefix, prompt). A thread takes them in the order they came.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

from training.serve.generation import EngineFailed, Generation
from training.serve.sampling import OneRequest, Sampling
from training.serve.serve_spec import ServeSpec


class Serial:
    def __init__(self, model: Any, end_tokens: tuple[int, ...], spec: ServeSpec) -> None:
        self._model, self._end_tokens = model, list(end_tokens)
        limits = [getattr(model.config, name, None) for name in ("max_position_embeddings", "n_positions")]
        self.capacity = min([spec.cache_tokens, *(int(limit) for limit in limits if limit)])
        self._waiting: queue.Queue[_Ticket | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="serial", daemon=True)
        self._thread.start()

    def start(self, prompt: list[int], sampling: Sampling, max_new_tokens: int, every_token: bool) -> Generation:
        if not self.is_alive():
            raise EngineFailed("the engine takes no more requests")
        given_up = threading.Event()
        generation = Generation(sampling, given_up.set)
        loop = asyncio.get_running_loop()

        def tell(report: Callable[..., None], *arguments: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(report, *arguments)

        self._waiting.put(_Ticket(prompt, generation, max_new_tokens, every_token, given_up, tell))
        return generation

    def _work(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            try:
                if not ticket.given_up.is_set():
                    tokens = self._generate(ticket)
                    ticket.tell(ticket.generation.arrived, tokens, True)
            except Exception as error:  # noqa: BLE001 one answer failed: the next may not
                ticket.tell(ticket.generation.failed, type(error).__name__)

    def _generate(self, ticket: _Ticket) -> list[int]:
        prompt_BT = torch.tensor([ticket.prompt])
        skip = 1 if self._model.config.is_encoder_decoder else len(ticket.prompt)
        with torch.inference_mode():
            output_BT = self._model.generate(
                input_ids=prompt_BT,
                attention_mask=torch.ones_like(prompt_BT),
                max_new_tokens=ticket.max_new_tokens,
                do_sample=False,
                eos_token_id=self._end_tokens or None,
                logits_processor=[OneRequest(ticket.generation.sampling)],
                stopping_criteria=[_Watch(ticket, skip)],
            )
        tokens: list[int] = output_BT[0, skip:].tolist()
        return tokens

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(10)


@dataclass(frozen=True)
class _Ticket:
    prompt: list[int]
    generation: Generation
    max_new_tokens: int
    every_token: bool
    given_up: threading.Event
    tell: Callable[..., None]


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer nobody waits for, and tells of each token where that is wanted."""

    def __init__(self, ticket: _Ticket, skip: int) -> None:
        self.ticket, self.skip = ticket, skip

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_ignored: Any) -> torch.Tensor:
        if self.ticket.every_token:
            self.ticket.tell(self.ticket.generation.arrived, input_ids[0, self.skip :].tolist(), False)
        return torch.full((len(input_ids),), self.ticket.given_up.is_set())
