"""Threads a replica computes with: as many as pay, and no pool left behind by work beside the engine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from training.serve.own_thread import in_own_thread
from training.serve.threads import settle_threads

CENSUS = """
import psutil, torch
from training.serve.own_thread import in_own_thread
torch.set_num_threads(4)
for _ in range(20):
    in_own_thread(lambda: torch.randn(512, 512) @ torch.randn(512, 512))
    print(psutil.Process().num_threads())
"""


class Stopwatch(torch.nn.Module):
    """A model that takes as long as it is told to, by the number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__()
        self.seconds, self.config = seconds, SimpleNamespace(is_encoder_decoder=False)

    def forward(self, input_ids: Tensor) -> Any:
        time.sleep(self.seconds[torch.get_num_threads()])
        return input_ids


@pytest.fixture(autouse=True)
def no_thread_pool() -> Iterator[None]:
    """In place of the fixture of this name: threads may be set here, as nothing computes with them."""
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("seconds", "settled"),
    [({1: 0.03, 4: 0.01}, 4), ({1: 0.01, 4: 0.03}, 1), ({1: 0.02, 4: 0.02}, 1)],
    ids=["faster", "slower", "as fast"],
)
def test_threads_are_used_where_they_pay(seconds: dict[int, float], settled: int) -> None:
    assert settle_threads(Stopwatch(seconds), 4) == settled == torch.get_num_threads()


def test_one_thread_is_not_timed() -> None:
    assert settle_threads(Stopwatch({}), 1) == 1


def test_failure_in_a_thread_of_its_own_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        in_own_thread(lambda: 1 // 0)


def test_work_beside_the_engine_leaves_no_thread() -> None:
    told = subprocess.run([sys.executable, "-c", CENSUS], capture_output=True, text=True, check=True).stdout.split()
    assert int(told[-1]) <= int(told[0]) + 3  # one pool may be about to end; none of twenty is kept
