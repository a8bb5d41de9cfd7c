"""Checkpoints written in the background, on two ranks: what was there when asked, one at a time, nothing lost before."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import filesystem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from benchmarks import chaos_train
from spark_jobs.errors import JobCrashed
from spark_jobs.requests import failure_of
from training.pretrain import checkpointing
from training.pretrain.checkpointing import Saver, complete_steps, load_newest
from training.pretrain.mesh import Ranks

FACTS = {"identity": "a"}


def sharded(value: float) -> dict[str, Any]:
    """A matrix of 4 x 3 with two rows a rank, and a number that both ranks have."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {"model.w": distribute_tensor(torch.full((4, 3), value), mesh, [Shard(0)]), "step": torch.tensor(value)}


def fill(state: dict[str, Any], value: float) -> None:
    state["model.w"].to_local().fill_(value)
    state["step"].fill_(value)


def values(state: dict[str, Any]) -> list[float]:
    whole = state["model.w"].full_tensor()
    return sorted({*whole.flatten().tolist(), float(state["step"])})


def nothing() -> None: ...


@contextlib.contextmanager
def held_back(name: str) -> Iterator[threading.Event]:
    """Calls of a function of `checkpointing` in the background wait for the event; this process only."""
    function, go_on = getattr(checkpointing, name), threading.Event()

    def later(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(60)
        return function(*args, **kwargs)

    setattr(checkpointing, name, later)
    try:
        yield go_on
    finally:
        setattr(checkpointing, name, function)


def test_tensors_changed_after_they_were_copied_are_saved_as_they_were(run_ranks, tmp_path: Path) -> None:
    """Nothing of the first checkpoint is on the disk yet when all values change."""

    def rank(ranks: Ranks) -> tuple[list[int], list[float], list[float]]:
        saver, state = Saver(tmp_path, ranks, 2, in_background=True), sharded(1.0)
        with held_back("save") as go_on:
            saver.save(1, state, FACTS, nothing)
            saver.wait_for_copies()
            fill(state, 2.0)
            before = complete_steps(tmp_path)
            dist.barrier()
            go_on.set()
            saver.wait()
        loaded = sharded(0.0)
        load_newest(tmp_path, loaded, "a", ranks)
        return before, values(loaded), values(state)

    assert run_ranks(rank, 2) == [([], [1.0], [2.0])] * 2


def test_copy_of_a_sharded_tensor_shares_no_memory_and_keeps_its_place(run_ranks) -> None:
    def rank(ranks: Ranks) -> tuple[bool, list[float]]:
        original = sharded(3.0)["model.w"]
        copy = checkpointing.host_copy(original)
        assert isinstance(copy, DTensor)
        fresh = copy.to_local().data_ptr() != original.to_local().data_ptr()
        original.to_local().fill_(4.0)
        return fresh and copy.placements == original.placements, copy.full_tensor().unique().tolist()

    assert run_ranks(rank, 2) == [(True, [3.0])] * 2


def test_update_waits_until_tensors_are_copied(tmp_path: Path) -> None:
    """Copies are held back until training is about to change what they are copies of."""
    group = chaos_train.write_shards(tmp_path / "shards.parquet")
    chaos_train.run(group, tmp_path / "blocking", 2, "blocking")

    def rank(ranks: Ranks) -> int:
        with held_back("host_copy") as go_on:

            def released(function: Callable[[Saver], None]) -> Callable[[Saver], None]:
                def release_and_wait(saver: Saver) -> None:
                    go_on.set()
                    function(saver)
                    go_on.clear()

                return release_and_wait

            Saver.wait_for_copies = released(Saver.wait_for_copies)  # type: ignore[method-assign]
            Saver.wait = released(Saver.wait)  # type: ignore[method-assign]
            return chaos_train.train(ranks, group, tmp_path / "async", "async")

    chaos_train.on_ranks(rank, 2)
    assert chaos_train.outputs(tmp_path / "async") == chaos_train.outputs(tmp_path / "blocking")


def test_checkpoints_are_written_one_at_a_time_in_order(run_ranks, tmp_path: Path) -> None:
    def rank(ranks: Ranks) -> tuple[list[int], list[list[int]]]:
        saver, state, seen = Saver(tmp_path, ranks, 9, in_background=True), sharded(0.0), []
        for step in (1, 2, 3):
            fill(state, float(step))
            saver.save(step, state, FACTS, lambda: seen.append(complete_steps(tmp_path)))
            saver.wait_for_copies()
        saver.wait()
        return complete_steps(tmp_path), seen

    assert run_ranks(rank, 2) == [([1, 2, 3], [[], [1], [1, 2]]), ([1, 2, 3], [])]


def test_older_checkpoint_goes_when_the_newer_one_is_complete(run_ranks, tmp_path: Path) -> None:
    def rank(ranks: Ranks) -> list[list[int]]:
        saver, state = Saver(tmp_path, ranks, 1, in_background=True), sharded(1.0)
        saver.save(1, state, FACTS, nothing)
        saver.wait()
        with held_back("publish") as go_on:
            saver.save(2, state, FACTS, nothing)
            saver.wait_for_copies()
            before = complete_steps(tmp_path)
            dist.barrier()
            go_on.set()
            saver.wait()
        return [before, complete_steps(tmp_path)]

    assert run_ranks(rank, 2) == [[[1], [2]]] * 2


@pytest.mark.parametrize("meet", [Saver.wait, Saver.wait_for_copies], ids=["next save", "next step"])
def test_error_of_one_rank_is_raised_by_all_and_the_checkpoint_before_stays(
    run_ranks, tmp_path: Path, meet: Callable[[Saver], None]
) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def rank(ranks: Ranks) -> tuple[str, str, list[int], list[float]]:
        saver, state = Saver(tmp_path, ranks, 2, in_background=True), sharded(1.0)
        saver.save(1, state, FACTS, nothing)
        saver.wait()
        if ranks.rank == 1:
            filesystem._write_item = no_space
        fill(state, 2.0)
        saver.save(2, state, FACTS, nothing)
        assert saver.job is not None
        saver.job.thread.join()
        with pytest.raises(JobCrashed) as caught:
            meet(saver)
        load_newest(tmp_path, state, "a", ranks)
        return str(caught.value), failure_of(caught.value).error, complete_steps(tmp_path), values(state)

    for message, kind, steps, left in run_ranks(rank, 2):
        assert "the checkpoint of step 2 could not be written in the background" in message
        assert "No space left on device" in message
        assert (kind, steps, left) == ("DiskFull", [1], [1.0])


def test_each_rank_gets_its_own_random_state_back(run_ranks, tmp_path: Path) -> None:
    """As it was when the checkpoint was asked for. prime-rl#1035: under one key all would get that of rank 0."""

    def rank(ranks: Ranks) -> tuple[list[float], list[float]]:
        saver, state = Saver(tmp_path, ranks, 2, in_background=True), sharded(1.0)
        torch.manual_seed(ranks.rank)
        saver.save(1, state, FACTS, nothing)
        expected = torch.rand(3)
        saver.wait()
        load_newest(tmp_path, state, "a", ranks)
        return expected.tolist(), torch.rand(3).tolist()

    (first, first_again), (second, second_again) = run_ranks(rank, 2)
    assert (first, second) == (first_again, second_again)
    assert first != second


def test_state_that_is_published_is_that_of_its_step(run_ranks, tmp_path: Path) -> None:
    """`before_publish` runs before anything can be found, on the first rank."""

    def rank(ranks: Ranks) -> Tensor:
        saver, told = Saver(tmp_path, ranks, 2, in_background=True), list[bool]()
        saver.save(7, sharded(1.0), FACTS, lambda: told.append((tmp_path / "step-00000007").exists()))
        saver.wait()
        return torch.tensor(told)

    first, second = run_ranks(rank, 2)
    assert (first.tolist(), second.tolist()) == ([False], [])
    assert json.loads((tmp_path / "step-00000007" / "state.json").read_text()) == {"identity": "a", "step": 7}
