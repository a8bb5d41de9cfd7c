from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spark_jobs.errors import DataError
from training.compress.gptq import block_spans, gptq
from training.compress.hessian import inverse_factor, output_error
from training.compress.quantized import Grid, Quantized
from training.compress.rounding import group_scales, nearest_codes, round_to_grid

SEEDS = range(8)


def made_layer(seed: int, num_inputs: int = 128, num_tokens: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (32, I), and Hessians of calibration tokens and of others: correlated inputs, some far larger than others."""
    made = torch.Generator().manual_seed(seed)
    mixing_II = torch.randn(num_inputs, num_inputs, generator=made) / num_inputs**0.5 + torch.eye(num_inputs)
    size_I = torch.exp(1.2 * torch.randn(num_inputs, generator=made))
    seen_TI, other_TI = (torch.randn(num_tokens, num_inputs, generator=made) @ mixing_II * size_I for _ in range(2))
    weight_OI = torch.randn(32, num_inputs, generator=made)
    return weight_OI, seen_TI.T @ seen_TI * (2 / num_tokens), other_TI.T @ other_TI * (2 / num_tokens)


def mean_error(solve: Callable[[Tensor, Tensor], Quantized], num_inputs: int = 128) -> float:
    """Share of the outputs' squares lost on tokens that were not calibrated on, mean over SEEDS."""
    total = 0.0
    for seed in SEEDS:
        weight_OI, hessian_II, other_II = made_layer(seed, num_inputs)
        total += output_error(solve(weight_OI, hessian_II).weight() - weight_OI, weight_OI, other_II)
    return total / len(SEEDS)


def gptq_error(grid: Grid, act_order: bool = True, static_groups: bool = True, num_inputs: int = 128) -> float:
    return mean_error(lambda w, h: gptq(w, h, grid, act_order, static_groups, 0.01)[0], num_inputs)


def rounding_error(grid: Grid, num_inputs: int = 128) -> float:
    return mean_error(lambda w, h: round_to_grid(w, grid), num_inputs)


def column_loop(weight_OI: Tensor, hessian_II: Tensor, grid: Grid, order_I: Tensor, static_groups: bool) -> Tensor:
    """GPTQ as the paper's formula says it: every rounding is paid for at once by all later inputs."""
    live_OI, num_inputs = weight_OI[:, order_I].clone(), weight_OI.shape[1]
    upper_II = inverse_factor(hessian_II[order_I][:, order_I], 0.01).upper_II
    assert upper_II is not None
    plain, size, decoded_OI = round_to_grid(weight_OI, grid), grid.group(num_inputs), torch.zeros_like(weight_OI)
    for j in range(num_inputs):
        if static_groups:
            group = int(order_I[j]) // size
            scales, zeros = plain.scales_OG[:, group], None if plain.zeros_OG is None else plain.zeros_OG[:, group]
        elif j % size == 0:
            scales, zeros = group_scales(live_OI[:, j : j + size], grid)
        codes = nearest_codes(live_OI[:, j], scales, zeros, grid).double()
        decoded_OI[:, order_I[j]] = (codes - (0 if zeros is None else zeros)) * scales.double()
        error_O = (live_OI[:, j] - decoded_OI[:, order_I[j]]) / upper_II[j, j]
        live_OI[:, j + 1 :] -= torch.outer(error_O, upper_II[j, j + 1 :])
    return decoded_OI


@pytest.mark.parametrize("static_groups", [True, False])
def test_gptq_of_two_correlated_inputs_moves_the_first_rounding_error_to_the_second(static_groups: bool) -> None:
    weight_OI, inputs_TI = torch.tensor([[0.9, 0.6]]), torch.tensor([[1.0, 1.0], [1.0, 0.8]])
    quantized, solve = gptq(weight_OI, inputs_TI.T @ inputs_TI, Grid(3), False, static_groups, damping=0.0)
    plain = round_to_grid(weight_OI, Grid(3))
    torch.testing.assert_close(quantized.weight(), torch.tensor([[0.7714, 0.7714]]), atol=5e-4, rtol=0)
    torch.testing.assert_close(plain.weight(), torch.tensor([[0.7714, 0.5143]]), atol=5e-4, rtol=0)
    lost = [float(((q.weight() - weight_OI) @ inputs_TI.T).norm()) for q in (quantized, plain)]
    assert lost == pytest.approx([0.0437, 0.2912], abs=1e-3)
    assert (solve.damping, solve.fallback) == (0.0, False)


@pytest.mark.parametrize("block_columns", [1, 7, 24, 128])
@pytest.mark.parametrize("group_size", [0, 6, 36])
@pytest.mark.parametrize("static_groups", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_lazy_blocks_of_any_size_give_the_codes_of_the_column_loop(
    act_order: bool, static_groups: bool, group_size: int, block_columns: int
) -> None:
    weight_OI, hessian_II, _ = (t.double() for t in made_layer(seed=3, num_inputs=72))
    for grid in (Grid(3, group_size), Grid(4, group_size, symmetric=False)):
        quantized, _ = gptq(weight_OI, hessian_II, grid, act_order, static_groups, 0.01, block_columns=block_columns)
        order_I = hessian_II.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(72)
        expected_OI = column_loop(weight_OI, hessian_II, grid, order_I, static_groups)
        torch.testing.assert_close(quantized.weight().double(), expected_OI, atol=1e-6, rtol=1e-6)
        assert (quantized.group_I is None) == (static_groups or not act_order or not group_size)


@pytest.mark.parametrize(("group", "block"), [(32, 128), (128, 128), (256, 128), (96, 128), (200, 128), (600, 128)])
def test_groups_begin_where_lazy_blocks_do_or_inside_one(group: int, block: int) -> None:
    spans = list(block_spans(12 * group, group, block))
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == 12 * group
    for first in range(0, 12 * group, group):
        start, end = next((s, e) for s, e in spans if s <= first < e)
        assert first == start or first + group <= end


def test_inputs_that_are_independent_and_alike_make_gptq_rounding_to_nearest() -> None:
    weight_OI, _, _ = made_layer(seed=0)
    for act_order in (True, False):
        for static_groups in (True, False):
            quantized, _ = gptq(weight_OI, 3 * torch.eye(128), Grid(3, 32), act_order, static_groups, 0.01)
            assert torch.equal(quantized.codes_OI, round_to_grid(weight_OI, Grid(3, 32)).codes_OI)


def test_three_tokens_for_64_inputs_still_give_a_finite_weight_better_than_rounding() -> None:
    weight_OI = made_layer(seed=0, num_inputs=64)[0]
    inputs_TI = torch.randn(3, 64, generator=torch.Generator().manual_seed(5))
    hessian_II = inputs_TI.T @ inputs_TI
    for damping in (0.01, 0.0):
        quantized, solve = gptq(weight_OI, hessian_II, Grid(4), True, True, damping)
        assert not solve.fallback
        assert solve.damping > 0
        lost = output_error(quantized.weight() - weight_OI, weight_OI, hessian_II)
        assert lost < output_error(round_to_grid(weight_OI, Grid(4)).weight() - weight_OI, weight_OI, hessian_II)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("static_groups", [True, False])
def test_an_input_that_was_always_zero_gets_weight_zero(static_groups: bool, symmetric: bool) -> None:
    weight_OI, hessian_II, _ = made_layer(seed=1, num_inputs=64)
    weight_OI[:, 5] = 50.0  # would widen every scale
    hessian_II[5], hessian_II[:, 5] = 0, 0
    quantized, solve = gptq(weight_OI, hessian_II, Grid(4, 16, symmetric), True, static_groups, 0.01)
    assert not solve.fallback
    assert (quantized.weight()[:, 5] == 0).all()
    assert output_error(quantized.weight() - weight_OI, weight_OI, hessian_II) < 0.01


def test_a_hessian_that_is_not_finite_falls_back_to_rounding_and_says_so() -> None:
    weight_OI, hessian_II, _ = made_layer(seed=1, num_inputs=64)
    hessian_II[3, 3] = float("nan")
    quantized, solve = gptq(weight_OI, hessian_II, Grid(4, 16), True, True, 0.01)
    assert solve.fallback
    assert torch.equal(quantized.codes_OI, round_to_grid(weight_OI, Grid(4, 16)).codes_OI)


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="no 16-bit scale"):
        gptq(torch.tensor([[1.0, float("inf")]]), torch.eye(2), Grid(4), True, True, 0.01)


@pytest.mark.parametrize("static_groups", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_2_to_4_zeros_survive_gptq_and_would_not_without_the_mask(symmetric: bool, static_groups: bool) -> None:
    weight_OI, hessian_II, _ = made_layer(seed=2, num_inputs=64)
    smallest = weight_OI.abs().reshape(32, 16, 4).argsort(-1)[..., :2]
    mask_OI = torch.zeros(32, 16, 4, dtype=torch.bool).scatter(-1, smallest, True).reshape(32, 64)
    pruned_OI, grid = weight_OI.masked_fill(mask_OI, 0), Grid(4, 16, symmetric)
    masked, _ = gptq(pruned_OI, hessian_II, grid, True, static_groups, 0.01, mask_OI=mask_OI)
    plain, _ = gptq(pruned_OI, hessian_II, grid, True, static_groups, 0.01)
    assert (masked.weight()[mask_OI] == 0).all()
    assert (plain.weight()[mask_OI] != 0).any()
    errors = [output_error(q.weight() - pruned_OI, pruned_OI, hessian_II) for q in (masked, plain)]
    assert errors[0] < output_error(round_to_grid(pruned_OI, grid).weight() - pruned_OI, pruned_OI, hessian_II)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_gptq_loses_less_than_rounding_and_act_order_less_again(bits: int) -> None:
    """On every seed, on the outputs of tokens not calibrated on."""
    for seed in SEEDS:
        weight_OI, hessian_II, other_II = made_layer(seed)
        lost = [
            output_error(quantized.weight() - weight_OI, weight_OI, other_II)
            for quantized in (
                gptq(weight_OI, hessian_II, Grid(bits), True, True, 0.01)[0],
                gptq(weight_OI, hessian_II, Grid(bits), False, True, 0.01)[0],
                round_to_grid(weight_OI, Grid(bits)),
            )
        ]
        assert lost == sorted(lost), (seed, lost)


@pytest.mark.parametrize("static_groups", [True, False])
def test_2_bit_groups_of_32_with_act_order_lose_less_than_rounding(static_groups: bool) -> None:
    """Without act-order and with groups formed on the way this is not so, as others found too."""
    assert gptq_error(Grid(2, 32), static_groups=static_groups) < rounding_error(Grid(2, 32))


@pytest.mark.parametrize("bits", [4, 3])
def test_smaller_groups_lose_less_by_rounding_and_by_gptq_with_act_order(bits: int) -> None:
    grids = [Grid(bits, size) for size in (32, 128, 0)]
    for error in (rounding_error, gptq_error):
        small, medium, whole = (error(grid, num_inputs=256) for grid in grids)
        assert small < medium < whole


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_zero_point_loses_no_more_on_average(bits: int) -> None:
    assert rounding_error(Grid(bits, 32, symmetric=False)) < rounding_error(Grid(bits, 32))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("static_groups", [True, False])
def test_a_shorter_last_group_loses_less_by_gptq_than_by_rounding(act_order: bool, static_groups: bool) -> None:
    torch.manual_seed(0)
    weight_OI = torch.randn(16, 40, dtype=torch.float64)
    inputs_TI = torch.randn(400, 40, dtype=torch.float64) @ torch.randn(40, 40, dtype=torch.float64)
    hessian_II, grid = 2 * inputs_TI.T @ inputs_TI / 400, Grid(3, 16)
    made, solve = gptq(weight_OI, hessian_II, grid, act_order, static_groups, 0.01)
    plain = round_to_grid(weight_OI, grid)
    errors = [float(((q.weight().double() - weight_OI) @ inputs_TI.T).square().sum()) for q in (made, plain)]
    assert made.scales_OG.shape == (16, 3)
    assert not solve.fallback
    assert errors[0] < errors[1]
