"""Ranks on CPU keep what they freed: no page faults from step to step, no growth, the same numbers."""

from __future__ import annotations

import hashlib
import random
import resource
import socket
import sys
import threading
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from training.pretrain.allocator import SET_BY_USER, keep_freed_memory
from training.pretrain.mesh import join_ranks
from training.processes import in_fresh_process

MB = 2**20
BLOCK = 40 * MB  # above what glibc would ever keep by itself
WARM_STEPS = 8

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")


@pytest.fixture(autouse=True)
def nothing_set_by_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SET_BY_USER:
        monkeypatch.delenv(name, raising=False)


def resident() -> int:
    """Bytes."""
    found: int = psutil.Process().memory_info().rss
    return found


def faults_of_steps(steps: int) -> int:
    """Page faults of filling and dropping a large block, once for each step, after steps in which the heap finds room."""
    for _ in range(WARM_STEPS):
        torch.zeros(BLOCK // 4).add_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.zeros(BLOCK // 4).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def allocate_and_free(seed: int, count: int) -> int:
    """Blocks of 4 kB to 64 MB, at most eight alive, dropped in any order; the most bytes that were alive at once."""
    draws, alive, most = random.Random(seed), list[torch.Tensor](), 0
    for _ in range(count):
        alive.append(torch.zeros(int(2 ** draws.uniform(10, 24))))
        most = max(most, sum(block.nbytes for block in alive))
        while len(alive) > 7:
            alive.pop(draws.randrange(len(alive)))
    return most


def test_rank_that_joined_on_cpu_faults_no_page_of_a_block_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    facts = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in (facts | {"MASTER_ADDR": "localhost"}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def rank() -> dict[str, Any]:
        before = faults_of_steps(10)
        join_ranks()
        after = faults_of_steps(10)
        dist.destroy_process_group()
        return {"before": before, "after": after}

    found = in_fresh_process(rank)
    pages = 10 * BLOCK // resource.getpagesize()
    assert found["after"] < pages // 100
    assert found["before"] > 10 * found["after"]


def test_memory_of_repeated_steps_does_not_grow() -> None:
    def steps() -> dict[str, Any]:
        assert keep_freed_memory()
        before, kept = resident(), []
        for _ in range(40):
            allocate_and_free(seed=0, count=150)
            kept.append(resident() - before)
        return {"kept": kept}

    kept = in_fresh_process(steps)["kept"]
    assert kept[0] > 100 * MB
    assert kept[-1] < 1.25 * kept[19]  # a few steps go by before every block has found its place


def test_memory_of_blocks_of_any_size_from_several_threads_is_bounded_by_what_was_alive() -> None:
    def steps() -> dict[str, Any]:
        assert keep_freed_memory()
        before, most = resident(), [0, 0]

        def work(number: int) -> None:
            for seed in range(6):
                most[number] = max(most[number], allocate_and_free(2 * seed + number, count=150))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"kept": resident() - before, "most": sum(most)}

    found = in_fresh_process(steps)
    assert found["most"] > 100 * MB
    assert found["kept"] < 2.5 * found["most"]


def test_numbers_of_a_training_are_the_same_bytes_with_and_without() -> None:
    def weights(keep: bool) -> dict[str, Any]:
        assert not keep or keep_freed_memory()
        torch.manual_seed(0)
        head = torch.nn.Linear(16, 8192)
        optimizer = torch.optim.AdamW(head.parameters())
        for _ in range(2):
            logits = head(torch.randn(1280, 16))  # 40 MB
            F.cross_entropy(logits, torch.arange(1280)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return {"digest": hashlib.sha256(head.weight.detach().numpy().tobytes()).hexdigest()}

    assert in_fresh_process(lambda: weights(keep=True)) == in_fresh_process(lambda: weights(keep=False))


@pytest.mark.parametrize("name", SET_BY_USER)
def test_allocator_that_the_environment_sets_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")

    def faults() -> dict[str, Any]:
        return {"set": keep_freed_memory(), "faults": faults_of_steps(3)}

    found = in_fresh_process(faults)
    assert not found["set"]
    assert found["faults"] > BLOCK // resource.getpagesize()
