"""Items that stand in the training sequences: found where a document holds them, nowhere else, in flat memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.benchmarks.overlap import Overlap, corpus_blocks, overlaps, rolled

IDS = st.lists(st.integers(0, 3), max_size=14)


def block(*documents: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([i for d in documents for i in d], np.int32), np.array([len(d) for d in documents], np.int32)


def runs(ids: list[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}


@settings(deadline=None)
@given(
    items=st.lists(IDS, max_size=5),
    documents=st.lists(st.lists(IDS, min_size=1, max_size=4), max_size=4),
    n=st.integers(2, 5),
)
def test_runs_found_are_those_that_a_document_holds(
    items: list[list[int]], documents: list[list[list[int]]], n: int
) -> None:
    """Against sets of runs, document by document: no run across a border, none twice."""
    held = {run for one in documents for document in one for run in runs(document, n)}
    expected = [Overlap(len(runs(item, n)), len(runs(item, n) & held)) for item in items]
    assert overlaps(items, (block(*one) for one in documents), n) == expected


def test_run_over_the_border_of_two_documents_is_no_overlap() -> None:
    assert overlaps([[1, 2, 3, 4]], [block([9, 1, 2], [3, 4, 9])], 4)[0].num_found == 0
    assert overlaps([[1, 2, 3, 4]], [block([9, 1, 2, 3, 4, 9])], 4)[0].num_found == 1


def test_item_shorter_than_a_run_is_not_judged() -> None:
    (short,) = overlaps([[1, 2]], [block([1, 2, 3])], 3)
    assert (short.num_runs, short.contaminated) == (0, None)


def test_equal_hashes_are_told_apart_by_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a base of 0 only the last token of a run decides its hash."""
    monkeypatch.setattr("training.benchmarks.overlap.BASE", np.uint64(0))
    assert overlaps([[1, 2, 7]], [block([3, 4, 7], [1, 2, 7])], 3)[0].num_found == 1
    assert overlaps([[1, 2, 7]], [block([3, 4, 7])], 3)[0].num_found == 0


def test_hashes_of_a_block_are_those_of_its_runs_alone() -> None:
    tokens = np.arange(40, dtype=np.int32) * 7919 % 513
    alone = [rolled(tokens[i : i + 5], 5)[0] for i in range(36)]
    assert list(rolled(tokens, 5)) == alone


def test_corpus_passes_by_with_every_training_token_once(world) -> None:
    sizes = [(len(tokens), int(lengths.sum())) for tokens, lengths in corpus_blocks(world.corpus)]
    assert sum(size for size, _ in sizes) == sum(night.num_tokens for night in world.corpus.nights)
    assert all(size == told for size, told in sizes)


def test_memory_does_not_grow_with_the_corpus() -> None:
    rng = np.random.default_rng(0)
    items = [rng.integers(0, 500, 40).tolist() for _ in range(50)]

    def peak(num_blocks: int) -> int:
        blocks = (
            (rng.integers(0, 500, 20_000).astype(np.int32), np.full(200, 100, np.int32)) for _ in range(num_blocks)
        )
        tracemalloc.start()
        overlaps(items, blocks, 13)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20) < 1.3 * peak(2)
