from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import orc

from training.pretrain.sequence_order import RowFacts, RowGroup, draws_of, epoch_order, mean_lengths, order_of


def groups_of(sizes: list[int], num_replay: int = 0) -> list[RowGroup]:
    return [RowGroup("", i, n, i < num_replay) for i, n in enumerate(sizes)]


@given(weights=st.lists(st.floats(0, 3), min_size=2, max_size=60), num_replay=st.integers(0, 1), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_weighted_epochs_draw_each_row_by_its_weight_and_have_one_length(
    weights: list[float], num_replay: int, seed: int
) -> None:
    half = len(weights) // 2
    groups = groups_of([half, len(weights) - half], num_replay)
    orders = [epoch_order(groups, 100.0, seed, epoch, np.array(weights)) for epoch in range(4)]
    assert len({len(order) for order in orders}) == 1
    for order in orders:
        drawn = np.bincount(order, minlength=len(weights))
        new = drawn[half:] if num_replay else drawn
        new_weights = weights[half:] if num_replay else weights
        assert abs(int(new.sum()) - sum(new_weights)) <= 0.5 + 1e-6
        assert all(d >= int(w) or num_replay for d, w in zip(drawn, weights, strict=True))


def test_weight_zero_is_never_drawn_and_weight_two_twice() -> None:
    weights = np.array([1.0, 0.0, 2.0, 1.0])
    for epoch in range(5):
        assert sorted(epoch_order(groups_of([2, 2]), 0.5, 3, epoch, weights)) == [0, 2, 2, 3]


def test_half_weight_is_drawn_every_other_epoch_on_average() -> None:
    weights = np.full(100, 0.5)
    drawn = sum(np.bincount(epoch_order(groups_of([100]), 0.5, 0, e, weights), minlength=100) for e in range(40))
    assert drawn.sum() == 40 * 50
    assert 8 <= drawn.min() <= drawn.max() <= 32


def test_all_ones_give_the_order_without_weights() -> None:
    groups = groups_of([30, 20, 10], num_replay=1)
    ones = epoch_order(groups, 0.5, 1, 2, np.ones(60))
    assert ones.tolist() == epoch_order(groups, 0.5, 1, 2).tolist()


def test_draws_run_on_from_epoch_to_epoch() -> None:
    groups = groups_of([7, 5])
    draws = draws_of(groups, RowFacts(), 0.5, 4, 30)
    whole = [row for epoch in range(3) for row in epoch_order(groups, 0.5, 4, epoch)]
    assert draws.tolist() == whole[:30]
    assert draws_of(groups_of([3]), RowFacts(np.zeros(3)), 0.5, 0, 9).tolist() == []


def test_short_first_sorts_what_the_training_draws_and_nothing_else() -> None:
    groups = groups_of([80])
    lengths = np.random.default_rng(0).permutation(80).astype(float)
    facts = RowFacts(lengths=lengths, num_sorted=40)
    plain = epoch_order(groups, 0.5, 3, 0)
    order = order_of(groups, facts, 0.5, 3, 0)
    assert sorted(order[:40]) == sorted(plain[:40])
    assert order[40:].tolist() == plain[40:].tolist()
    steps = [lengths[order[i : i + 5]] for i in range(0, 40, 5)]
    assert all(before.max() <= after.min() for before, after in pairwise(steps))
    assert order_of(groups, facts, 0.5, 3, 1).tolist() == epoch_order(groups, 0.5, 3, 1).tolist()
    assert order_of(groups, RowFacts(), 0.5, 3, 0).tolist() == plain.tolist()


def test_mean_lengths_are_of_each_row_in_both_formats(tmp_path: Path) -> None:
    table = pa.table({"seq_id": [0, 1, 2], "doc_lengths": pa.array([[2, 4], [6], [1, 1, 4]], pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    orc.write_table(table, str(tmp_path / "a.orc"))
    parquet = [RowGroup(str(tmp_path / "a.parquet"), 0, 2, False), RowGroup(str(tmp_path / "a.parquet"), 1, 1, False)]
    assert mean_lengths(parquet).tolist() == [3.0, 6.0, 2.0]
    assert mean_lengths([RowGroup(str(tmp_path / "a.orc"), 0, 3, False)]).tolist() == [3.0, 6.0, 2.0]
