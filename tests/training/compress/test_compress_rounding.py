from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.errors import DataError, RequestError
from training.compress.quantized import Grid, effective_bits
from training.compress.rounding import check_groups, round_to_grid


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_symmetric_int4_of_known_weights_gives_known_values() -> None:
    """scale = 0.7 / 7.5; the largest positive weight is clipped by half a step."""
    quantized = round_to_grid(torch.tensor([[0.7, -0.7, 0.35, 0.1]]), Grid(4, 4))
    assert quantized.codes_OI.tolist() == [[7, -8, 4, 1]]
    torch.testing.assert_close(quantized.weight(), torch.tensor([[0.6533, -0.7467, 0.3733, 0.0933]]), atol=1e-3, rtol=0)


def test_asymmetric_int4_of_known_weights_gives_known_values() -> None:
    """Range [-0.3, 1.2] in 15 steps of 0.1: 0 has code 3 - 8."""
    quantized = round_to_grid(torch.tensor([[1.2, -0.3, 0.44, 0.0]]), Grid(4, 4, symmetric=False))
    assert quantized.codes_OI.tolist() == [[7, -8, -1, -5]]
    assert quantized.zeros_OG is not None
    assert quantized.zeros_OG.tolist() == [[-5]]
    torch.testing.assert_close(quantized.weight(), torch.tensor([[1.2, -0.3, 0.4, 0.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("value", [0.5, -0.5, 9.0, -9.0, 0.0, 2.0**-14])
def test_a_group_of_one_number_comes_back_exactly(value: float, bits: int, symmetric: bool) -> None:
    weight_OI = torch.full((2, 32), value)
    quantized = round_to_grid(weight_OI, Grid(bits, 32, symmetric))
    assert torch.equal(quantized.weight(), weight_OI)
    if value == 0:
        assert (quantized.scales_OG == 1).all()


@settings(deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]), symmetric=st.booleans(), seed=st.integers(0, 99), exponent=st.integers(-5, 3)
)
def test_rounding_is_within_half_a_step_and_zero_stays_zero(
    bits: int, symmetric: bool, seed: int, exponent: int
) -> None:
    weight_OI = normal(3, 24, seed=seed) * 10.0**exponent
    weight_OI[:, ::5] = 0
    grid = Grid(bits, 8, symmetric)
    quantized = round_to_grid(weight_OI, grid)
    assert int(quantized.codes_OI.min()) >= grid.lowest
    assert int(quantized.codes_OI.max()) <= grid.highest
    steps = ((quantized.weight() - weight_OI).abs().reshape(3, 3, 8)) / quantized.scales_OG.float()[..., None]
    # A scale is off by up to 2^-11 of itself, or 2^-25 where fp16 is subnormal: the outermost code by that many steps of itself.
    rounding = float((2**-25 / quantized.scales_OG.float()).max()) + 2**-11
    clipped = 0.5 + 2**bits * rounding
    assert float(steps.max()) <= clipped + 0.5 * (not symmetric) * 2**bits * rounding + 1e-3
    assert (quantized.weight()[weight_OI == 0] == 0).all()


def test_masked_weights_decode_to_exactly_zero_and_do_not_widen_the_scale() -> None:
    weight_OI = torch.tensor([[100.0, 0.7, -0.7, 0.35]])
    mask_OI = torch.tensor([[True, False, False, False]])
    for symmetric in (True, False):
        restored = round_to_grid(weight_OI, Grid(4, 0, symmetric), mask_OI=mask_OI).weight()
        assert restored[0, 0] == 0
        assert (restored - weight_OI)[0, 1:].abs().max() < 0.06


def test_groups_in_another_order_equal_neighbouring_groups_of_the_reordered_weight() -> None:
    weight_OI, grid = normal(5, 12), Grid(3, 4, symmetric=False)
    order_I = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    group_I = torch.empty(12, dtype=torch.int32)
    group_I[order_I] = torch.arange(12, dtype=torch.int32) // 4
    scattered = round_to_grid(weight_OI, grid, group_I=group_I).weight()
    assert torch.equal(scattered[:, order_I], round_to_grid(weight_OI[:, order_I], grid).weight())


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="no 16-bit scale"):
        round_to_grid(torch.tensor([[1.0, float("nan")]]), Grid(4))


def test_a_group_size_that_does_not_fit_names_the_layers_and_one_that_fits() -> None:
    shapes = {"a.down": (8, 100), "a.up": (100, 64)}
    with pytest.raises(RequestError, match=re.escape("group_size 32 does not divide the inputs of 1 of 2")) as caught:
        check_groups(shapes, Grid(4, 32))
    assert "a.down (100 inputs)" in str(caught.value)
    assert "a.up" not in str(caught.value)
    assert "set it to 4," in str(caught.value)
    check_groups(shapes, Grid(4, 4))
    check_groups(shapes, Grid(4, 0))


def test_more_bits_and_smaller_groups_lose_less_and_a_zero_point_helps() -> None:
    """Mean over seeds of the error of rounding itself: 8 < 4 < 3 < 2 bits, 32 < 128 < 256 inputs a scale."""

    def lost(grid: Grid) -> float:
        weights = [normal(16, 256, seed=seed) for seed in range(8)]
        return sum(float((round_to_grid(w, grid).weight() - w).square().sum() / w.square().sum()) for w in weights)

    assert lost(Grid(8)) < lost(Grid(4)) < lost(Grid(3)) < lost(Grid(2))
    for bits in (4, 3, 2):
        assert lost(Grid(bits, 32)) < lost(Grid(bits, 128)) < lost(Grid(bits))
        assert lost(Grid(bits, 32, symmetric=False)) < lost(Grid(bits, 32))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_shorter_last_group_is_rounded_as_a_group_of_its_own(bits: int, symmetric: bool) -> None:
    torch.manual_seed(bits)
    weight_OI = torch.randn(6, 20, dtype=torch.float64)
    whole = round_to_grid(weight_OI, Grid(bits, 8, symmetric))
    parts = [round_to_grid(weight_OI[:, i : i + 8], Grid(bits, 0, symmetric)) for i in (0, 8, 16)]
    assert whole.scales_OG.shape == (6, 3)
    assert torch.equal(whole.weight(), torch.cat([part.weight() for part in parts], dim=1))
    assert effective_bits(whole.grid, 20) == bits + (16 + (0 if symmetric else bits)) * 3 / 20


def test_groups_that_do_not_divide_are_let_through_only_where_a_short_tail_was_asked_for() -> None:
    check_groups({"q": (4, 20)}, Grid(4, 8), "short")
    with pytest.raises(RequestError, match=r"q \(20 inputs\).*quantize\.tail to short"):
        check_groups({"q": (4, 20)}, Grid(4, 8))
