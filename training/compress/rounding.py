"""Rounding to nearest: the codes of a weight, each on its own. Pure functions.

Shapes: O outputs, I inputs, G groups a row, g inputs of a group.

A group's scale is what compressed-tensors, torchao and llm-compressor store: symmetric max|w| / ((2^bits - 1) / 2), so that
the largest positive weight is clipped by half a step; asymmetric (max(w, 0) - min(w, 0)) / (2^bits - 1), so that 0 has a code.
It is rounded to fp16 before codes are taken, so that codes and stored scales agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from spark_jobs.errors import DataError, RequestError
from training.compress.quantized import Grid, Quantized

SMALLEST_SCALE = 2.0**-24  # of fp16: below it a group's scale would be stored as 0


def round_to_grid(
    weight_OI: Tensor, grid: Grid, group_I: Tensor | None = None, mask_OI: Tensor | None = None
) -> Quantized:
    """Codes of the nearest numbers that `grid` has. group_I: group of each input, groups of one size; None: neighbours.
    mask_OI: True where the weight is 0 and stays it.

    Raises: DataError if a weight is not finite.
    """
    if mask_OI is not None:
        weight_OI = weight_OI.masked_fill(mask_OI, 0)
    num_outputs, num_inputs = weight_OI.shape
    order_I = None if group_I is None else torch.argsort(group_I, stable=True)
    sorted_OI = weight_OI if order_I is None else weight_OI[:, order_I]
    group, num_groups = grid.group(num_inputs), grid.num_groups(num_inputs)
    # A shorter last group is filled up with zeros, which change no scale: every group's range holds 0.
    whole_OI = functional.pad(sorted_OI, (0, num_groups * group - num_inputs))
    grouped_OGg = whole_OI.reshape(num_outputs, num_groups, group)
    scales_OG, zeros_OG = group_scales(grouped_OGg, grid)
    zeros = None if zeros_OG is None else zeros_OG[..., None]
    codes_OI = nearest_codes(grouped_OGg, scales_OG[..., None], zeros, grid).reshape(num_outputs, -1)[:, :num_inputs]
    if order_I is not None:
        codes_OI = codes_OI[:, torch.argsort(order_I)]
    return Quantized(grid, codes_OI, scales_OG, zeros_OG, None if group_I is None else group_I.to(torch.int32))


def group_scales(weight_Xg: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Scales fp16 (X,) and zero points int8 (X,), None where symmetric, of groups (X, g); X may be several dimensions.

    A group that holds one number, its opposite and zeros has that number as scale: rounding changes it no further than fp16
    does. A group of zeros has scale 1.
    """
    lowest_X, highest_X = weight_Xg.amin(-1).clamp(max=0), weight_Xg.amax(-1).clamp(min=0)
    largest_X = torch.maximum(highest_X, -lowest_X)
    absolute_Xg = weight_Xg.abs()
    one_number_X = ((absolute_Xg == 0) | (absolute_Xg == largest_X[..., None])).all(-1)
    span_X = 2 * largest_X if grid.symmetric else highest_X - lowest_X
    scales = torch.where(one_number_X, largest_X, span_X / (2**grid.bits - 1))
    scales = scales.clamp(min=SMALLEST_SCALE).masked_fill(largest_X == 0, 1.0).to(torch.float16)
    if not bool(torch.isfinite(scales).all()):
        raise DataError(
            f"a weight of size {float(largest_X.max()):g} has no 16-bit scale: finite weights below "
            f"{torch.finfo(torch.float16).max * (2**grid.bits - 1) / 2:g} are wanted; check the checkpoint"
        )
    if grid.symmetric:
        return scales, None
    zeros = torch.round(-lowest_X / scales.to(weight_Xg.dtype)) + grid.lowest
    zeros = zeros.clamp(grid.lowest, grid.highest).masked_fill(one_number_X, 0)
    return scales, zeros.to(torch.int8)


def nearest_codes(weight: Tensor, scales: Tensor, zeros: Tensor | None, grid: Grid) -> Tensor:
    """int8 codes, shaped like `weight`; scales and zero points broadcast to it. Halves round to even."""
    codes = torch.round(weight / scales.to(weight.dtype))
    if zeros is not None:
        codes = codes + zeros
    return codes.clamp(grid.lowest, grid.highest).to(torch.int8)


def check_groups(shapes: Mapping[str, tuple[int, int]], grid: Grid, tail: str = "refuse") -> None:
    """Raises: RequestError, before anything is computed, if a layer's inputs are no whole number of groups and `tail` is
    refuse (short: the last group of a row is shorter).

    shapes: name -> (outputs, inputs).
    """
    size = grid.group_size
    wrong = [f"{name} ({inputs} inputs)" for name, (_, inputs) in shapes.items() if size and inputs % size]
    if wrong and tail == "refuse":
        common = math.gcd(*(inputs for _, inputs in shapes.values()))
        fitting = max(d for d in range(1, min(common, size) + 1) if common % d == 0)
        raise RequestError(
            f"quantize.group_size {size} does not divide the inputs of {len(wrong)} of {len(shapes)} layers: "
            f"{', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}; set it to {fitting}, which fits all, "
            "to 0 for one scale an output, or quantize.tail to short"
        )
