"""Answers written side by side, by the continuous batching of `transformers`.

A request joins the running batch at the next step and leaves it with its last token; its keys and values lie in pages of one
cache. What is ours: how large that cache is, and what a row's next token is (see sampling.py).
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from training.serve.generation import EngineFailed, Generation
from training.serve.sampling import PerRequest, Sampling
from training.serve.serve_spec import ServeSpec

PAGE_TOKENS = 32  # tokens a page: a request wastes half of one, on average


def can_batch(model: Any) -> bool:
    """A decoder whose attention reads the paged cache. A peft adapter that lives beside the weights does not."""
    return (
        isinstance(model, PreTrainedModel)
        and model.can_generate()
        and not model.config.is_encoder_decoder
        and bool(getattr(model, "_supports_attention_backend", False))
    )


class Batching:
    """One model's engine. Its thread is that of transformers' manager."""

    def __init__(self, model: PreTrainedModel, end_tokens: tuple[int, ...], spec: ServeSpec) -> None:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self._end_tokens = list(end_tokens) or [-1]
        self._numbers = itertools.count()
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or spec.cache_tokens
        self.capacity = min(int(context), spec.cache_tokens - PAGE_TOKENS * 2)
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=spec.max_tokens, eos_token_id=self._end_tokens
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=-(-spec.cache_tokens // PAGE_TOKENS),
                max_batch_tokens=max(spec.prefill_tokens, spec.max_batch),
                max_requests_per_batch=spec.max_batch,
                use_cuda_graph=False,  # PerRequest reads which rows there are, anew in every step
                use_async_batching=False,
            ),
        )
        processors = self._manager.logit_processor
        processors.logits_processor.append(PerRequest())
        processors.tensors_required += 1
        processors.do_processing = True
        processors._retrieve_processors_kwargs()
        with torch.inference_mode():  # the thread takes over the mode
            self._manager.start()

    def start(self, prompt: list[int], sampling: Sampling, max_new_tokens: int, every_token: bool) -> Generation:
        self._drop_leftovers()
        name = f"r{next(self._numbers)}"
        generation = Generation(sampling, lambda: self._give_up(name))

        def deliver(output: Any) -> None:
            if output.error is not None:
                generation.failed(str(output.error))
            else:
                generation.arrived(output.generated_tokens, output.is_finished())

        self._manager.register_result_handler(name, deliver)
        taken = self._manager.add_request(
            prompt, name, max_new_tokens=max_new_tokens, streaming=every_token, eos_token_id=self._end_tokens,
            sampling=sampling,
        )  # fmt: skip
        if taken is None or not self.is_alive():
            self._forget(name)
            raise EngineFailed("the engine takes no more requests")
        return generation

    def _give_up(self, name: str) -> None:
        self._forget(name)
        self._manager.cancel_request(name)

    def _forget(self, name: str) -> None:
        router = self._manager.output_router
        with router._lock:
            router.result_handlers.pop(name, None)

    def _drop_leftovers(self) -> None:
        """What the batch had on its way for answers that were given up: nobody waits for it."""
        queue = self._manager.output_router.output_queue
        while not queue.empty():
            queue.get_nowait()

    def is_alive(self) -> bool:
        return bool(self._manager.is_running()) and self._manager.background_thread_status.fatal_error is None

    def close(self) -> None:
        self._manager.stop(block=True, timeout=10, hard_stop=True)
        self._manager.destroy()
