"""Which weights become zero: counts are exact, ties are stable, groups are whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spark_jobs.errors import RequestError
from training.compress.masks import (
    KEPT_OF,
    check_pattern,
    lowest,
    magnitude_mask,
    num_dropped,
    num_zeros,
    valid_groups,
)
from training.compress.wanda import wanda_mask
from training.compress_spec import PruneSpec

shares = st.integers(1, 99).map(lambda percent: percent / 100)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 40))


def weights(shape: tuple[int, int], seed: int, levels: int = 0) -> Tensor:
    """Normal, or where `levels` are asked of so few values that many are equal."""
    random = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(-levels, levels + 1, shape, generator=random).float()
    return torch.randn(shape, generator=random)


@pytest.mark.parametrize(
    ("count", "sparsity", "dropped"), [(8, 0.5, 4), (7, 0.5, 3), (100, 0.29, 29), (10, 0.7, 7), (3, 0.01, 0)]
)
def test_number_of_zeros_is_the_floor_of_the_share_as_written(count: int, sparsity: float, dropped: int) -> None:
    assert num_dropped(count, sparsity) == dropped


@given(shapes, st.integers(0, 5), st.integers(0, 3), st.data())
def test_lowest_is_what_a_stable_sort_has_first(
    shape: tuple[int, int], seed: int, levels: int, data: st.DataObject
) -> None:
    scores_RN = weights(shape, seed, levels)
    count = data.draw(st.integers(0, shape[1]))
    first = scores_RN.argsort(dim=-1, stable=True)[:, :count]
    assert torch.equal(lowest(scores_RN, count), torch.zeros(shape, dtype=torch.bool).scatter_(1, first, True))


@given(shapes, shares, st.integers(0, 5), st.integers(0, 3))
def test_magnitude_mask_has_the_share_of_the_layer_exactly(
    shape: tuple[int, int], sparsity: float, seed: int, levels: int
) -> None:
    weight_OI = weights(shape, seed, levels)
    mask_OI = magnitude_mask(weight_OI, PruneSpec(method="magnitude", pattern="unstructured", sparsity=sparsity))
    assert int(mask_OI.sum()) == num_dropped(weight_OI.numel(), sparsity)
    if mask_OI.any() and not mask_OI.all():
        assert weight_OI[mask_OI].abs().max() <= weight_OI[~mask_OI].abs().min()


@given(shapes, shares, st.integers(0, 5), st.integers(0, 3))
def test_wanda_mask_has_the_share_of_every_row_exactly(
    shape: tuple[int, int], sparsity: float, seed: int, levels: int
) -> None:
    norm_I = weights((1, shape[1]), seed + 1)[0].abs()
    mask_OI = wanda_mask(
        weights(shape, seed, levels), norm_I, PruneSpec(method="wanda", pattern="unstructured", sparsity=sparsity)
    )
    assert mask_OI.sum(1).tolist() == [num_dropped(shape[1], sparsity)] * shape[0]


@given(st.sampled_from(sorted(KEPT_OF)), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))
def test_group_masks_leave_exactly_n_of_m(pattern: str, num_rows: int, num_groups: int, levels: int) -> None:
    kept, size = KEPT_OF[pattern]
    weight_OI = weights((num_rows, num_groups * size), 7, levels)
    spec = PruneSpec.model_validate({"pattern": pattern})
    for mask_OI in (magnitude_mask(weight_OI, spec), wanda_mask(weight_OI, torch.ones(weight_OI.shape[1]), spec)):
        assert mask_OI.reshape(-1, size).sum(-1).unique().tolist() == [size - kept]
        assert valid_groups(weight_OI.masked_fill(mask_OI, 0.0), pattern) == 1.0


def test_wanda_ranks_by_the_norm_and_not_its_square() -> None:
    """Scores 3 * 1 and 1 * 2; squared norms would have said 3 and 4."""
    spec = PruneSpec(method="wanda", pattern="unstructured", sparsity=0.5)
    assert wanda_mask(torch.tensor([[3.0, 1.0]]), torch.tensor([1.0, 2.0]), spec).tolist() == [[False, True]]
    assert wanda_mask(torch.tensor([[1.0, 2.5]]), torch.tensor([2.0, 1.0]), spec).tolist() == [[True, False]]


def test_wanda_compares_within_a_row_and_magnitude_within_the_layer() -> None:
    weight_OI = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    spec = PruneSpec(pattern="unstructured", sparsity=0.5)
    assert wanda_mask(weight_OI, torch.ones(2), spec).tolist() == [[True, False], [True, False]]
    assert magnitude_mask(weight_OI, spec).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("pattern", sorted(KEPT_OF))
def test_wanda_of_equal_inputs_is_magnitude_within_groups(pattern: str) -> None:
    """Inputs c * I: every norm is c."""
    weight_OI, spec = weights((8, 32), 3), PruneSpec.model_validate({"pattern": pattern})
    assert torch.equal(wanda_mask(weight_OI, torch.full((32,), 1.7), spec), magnitude_mask(weight_OI, spec))


def test_zeros_and_groups_are_counted() -> None:
    weight_OI = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0, 3.0, 4.0, 5.0], [-0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert num_zeros(weight_OI) == 6
    assert valid_groups(weight_OI, "2:4") == 0.5
    assert valid_groups(weight_OI, "4:8") == 0.0


def test_layers_without_whole_groups_are_refused_by_name() -> None:
    sizes = {"blocks.0.up": 100, "blocks.0.down": 128, "blocks.1.up": 36}
    check_pattern(sizes, "2:4")
    check_pattern({"odd": 7}, "unstructured")
    with pytest.raises(RequestError, match=r"4:8.*blocks\.0\.up \(100 inputs\), blocks\.1\.up \(36 inputs\)"):
        check_pattern(sizes, "4:8")
