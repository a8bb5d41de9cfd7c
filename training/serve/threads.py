"""How many threads a model is run with: waiting for each other costs a small model more than it gains."""

from __future__ import annotations

import time
from typing import Any

import torch

ROWS = 8  # tokens of the step that is timed: a batch of middling size
TRIES = 5
WORTH = 1.1  # all threads must be so much faster: the event loop and the clients of this machine want a core as well


def settle_threads(model: Any, most: int) -> int:
    """Sets what engines started from now on use, 1 or `most`, and returns it. model: a decoder or an encoder."""
    torch.set_num_threads(1)
    alone = _seconds_a_step(model) if most > 1 else 0.0
    torch.set_num_threads(most)
    if most > 1 and alone <= WORTH * _seconds_a_step(model):
        torch.set_num_threads(1)
    return torch.get_num_threads()


def _seconds_a_step(model: Any) -> float:
    """The best of a few, after one that is not counted."""
    tokens = torch.zeros(1, ROWS, dtype=torch.long)
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {})
    best = float("inf")
    with torch.inference_mode():
        for number in range(TRIES + 1):
            began = time.perf_counter()
            model(**inputs)
            if number:
                best = min(best, time.perf_counter() - began)
    return best
