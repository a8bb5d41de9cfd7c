"""What is read ahead is what would have been read anyway, or it is not used."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.errors import DataError
from training.pretrain.sequence_order import corpus_row_groups
from training.pretrain.token_shards import Batch, Prefetcher, Sequences

PATIENCE_S = 30.0


@pytest.fixture
def sequences(world) -> Sequences:
    return Sequences(corpus_row_groups(world.corpus), 32, 0, 0.5, seed=0)


def squared(key: int) -> int:
    if key < 0:
        raise DataError(f"no row {key}")
    return key * key


@given(asked=st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(-1, 3)), max_size=12))
def test_answer_is_that_of_the_key_asked_for_whatever_was_expected(asked: list[tuple[int, int | None]]) -> None:
    prefetcher = Prefetcher(squared)
    for key, expected_next in asked:
        assert prefetcher.take(key) == key * key
        if expected_next is not None:
            prefetcher.expect(expected_next)
    prefetcher.close()


def test_expected_answer_is_made_before_it_is_asked_for() -> None:
    made = threading.Event()
    prefetcher = Prefetcher(lambda key: made.set() or key)
    prefetcher.expect(7)
    assert made.wait(PATIENCE_S)
    assert prefetcher.take(7) == 7
    prefetcher.close()


def test_error_made_ahead_is_raised_when_it_is_asked_for_and_not_before() -> None:
    prefetcher = Prefetcher(squared)
    prefetcher.expect(-1)
    assert prefetcher.take(2) == 4
    prefetcher.expect(-2)
    with pytest.raises(DataError, match="no row -2"):
        prefetcher.take(-2)
    assert prefetcher.take(3) == 9
    prefetcher.close()


def test_all_reading_is_done_by_one_thread_that_ends_when_closed() -> None:
    """Sequences keep a cache and the order of an epoch, which two threads must not change at once."""
    readers: list[threading.Thread] = []
    prefetcher = Prefetcher(lambda _: readers.append(threading.current_thread()))
    for key in range(4):
        prefetcher.take(key)
        prefetcher.expect(key + 1 + key % 2)
    prefetcher.close()
    assert set(readers) == {readers[0]} != {threading.current_thread()}
    assert not readers[0].is_alive()


def test_closing_does_not_wait_for_answers_that_did_not_begin() -> None:
    begun, go_on, made = threading.Event(), threading.Event(), list[int]()

    def make(key: int) -> None:
        made.append(key)
        begun.set()
        assert go_on.wait(PATIENCE_S)

    prefetcher = Prefetcher(make)
    prefetcher.expect(0)
    prefetcher.expect(1)
    assert begun.wait(PATIENCE_S)
    closing = threading.Thread(target=prefetcher.close)
    closing.start()
    while not prefetcher.ahead[1].cancelled():
        time.sleep(0.01)
    go_on.set()
    closing.join(PATIENCE_S)
    assert made == [0]


def walk(num_per_epoch: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Positions of each step with what was expected after it: over the end of two epochs, one step tried again, one
    jumped over."""
    steps = [tuple(range(first, first + 3)) for first in range(0, 2 * num_per_epoch + 6, 3)]
    for number, step in enumerate(steps):
        following = steps[number + 1] if number + 1 < len(steps) else ()
        if number == 4:
            yield step, following
        if number != 7:
            yield step, following


def test_sequences_read_ahead_over_epochs_and_jumps_equal_those_read_when_asked(world, sequences: Sequences) -> None:
    at_once = Sequences(corpus_row_groups(world.corpus), 32, 0, 0.5, seed=0)

    def read(source: Sequences, positions: tuple[int, ...]) -> list[Batch]:
        return list(source.micro_batches(positions, 2))

    prefetcher = Prefetcher(lambda positions: read(sequences, positions))
    for positions, following in walk(sequences.num_per_epoch):
        found, wanted = prefetcher.take(positions), read(at_once, positions)
        prefetcher.expect(following)
        assert len(found) == len(wanted) == 2
        for ours, theirs in zip(found, wanted, strict=True):
            for name in vars(theirs):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))
    prefetcher.close()
