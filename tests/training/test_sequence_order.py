from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.pretrain.sequence_order import RowFacts, RowGroup, draws_of, epoch_order


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
