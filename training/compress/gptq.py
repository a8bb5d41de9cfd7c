"""GPTQ: a weight rounded input by input, each rounding's error spread over the inputs that are not rounded yet.

Shapes: O outputs, I inputs, G groups a row, b inputs of a lazy block. The walk goes over the transposed weight (I, O), where
one input's weights lie side by side.
Source: arXiv 2210.17323 section 3 (columns, lazy blocks) and its code (act-order). Groups, as llm-compressor tells them apart:
static ones are neighbouring inputs, with scales of the weight as given; the others are formed in the order of rounding, with
scales of the weight as it is when the walk comes to the group.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from training.compress.hessian import Solve, inverse_factor
from training.compress.quantized import Grid, Quantized
from training.compress.rounding import group_scales, round_to_grid

BLOCK_COLUMNS = 128  # of the paper; changes speed alone


def gptq(
    weight_OI: Tensor, hessian_II: Tensor, grid: Grid, act_order: bool, static_groups: bool, damping: float,
    mask_OI: Tensor | None = None, block_columns: int = BLOCK_COLUMNS,
) -> tuple[Quantized, Solve]:  # fmt: skip
    """Codes whose outputs are near those of `weight_OI` on inputs of this Hessian, in the weight's precision.

    act_order: inputs of the largest diagonal first. mask_OI: True where the weight is 0 and stays it. Inputs that were
    always 0 get weight 0.
    Raises: DataError if a weight is not finite.
    """
    diagonal_I = hessian_II.diagonal()
    stays_OI = (diagonal_I == 0).expand_as(weight_OI)
    if mask_OI is not None:
        stays_OI = stays_OI | mask_OI
    order_I = torch.argsort(diagonal_I, descending=True, stable=True) if act_order else torch.arange(len(diagonal_I))
    factor = inverse_factor(hessian_II[order_I][:, order_I].to(weight_OI.dtype), damping)
    weight_OI = weight_OI.masked_fill(stays_OI, 0)
    plain = round_to_grid(weight_OI, grid, mask_OI=stays_OI)
    if factor.upper_II is None:
        return plain, Solve(factor.damping, fallback=True)
    walk = _Walk(weight_OI, stays_OI, order_I, plain if static_groups else None, grid)
    for start, end in block_spans(len(order_I), grid.group(len(order_I)), block_columns):
        walk.block(factor.upper_II, start, end)
    quantized = walk.quantized()
    return quantized or plain, Solve(factor.damping, fallback=quantized is None)


def block_spans(num_inputs: int, group: int, block_columns: int) -> Iterator[tuple[int, int]]:
    """Lazy blocks: several whole groups, or parts of one, so that a group begins only where no update is owed."""
    size = block_columns // group * group or block_columns
    for first in range(0, num_inputs, max(size, group)):
        last = min(first + max(size, group), num_inputs)
        for start in range(first, last, size):
            yield start, min(start + size, last)


class _Walk:
    """One weight on its way through GPTQ, inputs in the order of rounding. given: rounding to nearest, whose scales and
    groups are kept; None: groups form on the way."""

    def __init__(
        self, weight_OI: Tensor, stays_OI: Tensor, order_I: Tensor, given: Quantized | None, grid: Grid
    ) -> None:
        self.grid, self.order_I, self.live, self.diverged = grid, order_I, given is None, False
        self.weight_IO = weight_OI.T[order_I].contiguous()
        self.stays_IO = stays_OI.T[order_I].contiguous()
        self.codes_IO = torch.zeros_like(self.weight_IO)
        num_inputs, num_outputs = self.weight_IO.shape
        self.group = grid.group(num_inputs)
        if given is None:
            self.group_I = torch.arange(num_inputs) // self.group
            self.scales_GO = torch.ones(grid.num_groups(num_inputs), num_outputs, dtype=weight_OI.dtype)
        else:
            self.group_I = order_I // self.group
            self.scales_GO = given.scales_OG.T.to(weight_OI.dtype).contiguous()
        self.zeros_GO = torch.zeros_like(self.scales_GO)
        if given is not None and given.zeros_OG is not None:
            self.zeros_GO.copy_(given.zeros_OG.T)

    def block(self, upper_II: Tensor, start: int, end: int) -> None:
        """Round inputs start..end; what they owe the inputs behind is paid at once, at the end."""
        errors_bO = torch.empty_like(self.weight_IO[start:end])
        groups = self.group_I[start:end].tolist()
        diagonal = upper_II.diagonal()[start:end].tolist()
        for i, (group, pivot) in enumerate(zip(groups, diagonal, strict=True)):
            j = start + i
            if self.live and j % self.group == 0:
                self._start_group(j, group)
            scale_O, zero_O, weight_O = self.scales_GO[group], self.zeros_GO[group], self.weight_IO[j]
            code_O = torch.round(weight_O / scale_O).add_(zero_O).clamp_(self.grid.lowest, self.grid.highest)
            code_O = torch.where(self.stays_IO[j], zero_O, code_O)
            self.codes_IO[j] = code_O
            errors_bO[i] = (weight_O - (code_O - zero_O) * scale_O).div_(pivot)
            if j + 1 < end:
                self.weight_IO[j + 1 : end].addr_(upper_II[j, j + 1 : end], errors_bO[i], alpha=-1)
        if end < len(self.weight_IO):
            self.weight_IO[end:].addmm_(upper_II[start:end, end:].T, errors_bO, alpha=-1)

    def _start_group(self, j: int, group: int) -> None:
        inputs = slice(j, j + self.group)
        live_Og = self.weight_IO[inputs].masked_fill(self.stays_IO[inputs], 0).T
        if not float(live_Og.abs().max()) < torch.finfo(torch.float16).max:
            self.diverged = True
            return
        scales_O, zeros_O = group_scales(live_Og, self.grid)
        self.scales_GO[group].copy_(scales_O)
        if zeros_O is not None:
            self.zeros_GO[group].copy_(zeros_O)

    def quantized(self) -> Quantized | None:
        """None if the walk left what numbers can hold."""
        if self.diverged or not bool(torch.isfinite(self.weight_IO).all()):
            return None
        back_I = torch.argsort(self.order_I)
        scattered = self.live and len(self.scales_GO) > 1 and not torch.equal(back_I, torch.arange(len(back_I)))
        return Quantized(
            grid=self.grid,
            codes_OI=self.codes_IO[back_I].T.to(torch.int8).contiguous(),
            scales_OG=self.scales_GO.T.to(torch.float16).contiguous(),
            zeros_OG=None if self.grid.symmetric else self.zeros_GO.T.to(torch.int8).contiguous(),
            group_I=self.group_I[back_I].to(torch.int32) if scattered else None,
        )
