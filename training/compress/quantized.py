"""A weight as codes, scales and zero points. Shapes: O outputs, I inputs, G groups a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """What codes there are. group_size 0: all inputs of an output share a scale."""

    bits: int
    group_size: int = 0
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        return -(1 << self.bits - 1)

    @property
    def highest(self) -> int:
        return (1 << self.bits - 1) - 1

    def group(self, num_inputs: int) -> int:
        """Inputs that share a scale in a row of `num_inputs`."""
        return self.group_size or num_inputs

    def num_groups(self, num_inputs: int) -> int:
        """Groups of a row; the last may be shorter."""
        return -(-num_inputs // self.group(num_inputs))


@dataclass(frozen=True)
class Quantized:
    """weight = (codes - zero point of the group) * scale of the group.

    codes_OI int8 in [grid.lowest, grid.highest]; scales_OG fp16; zeros_OG int8 in the same range, None where symmetric;
    group_I int32: the group of each input, None where groups are neighbouring inputs.
    """

    grid: Grid
    codes_OI: Tensor
    scales_OG: Tensor
    zeros_OG: Tensor | None = None
    group_I: Tensor | None = None

    def weight(self) -> Tensor:
        """fp32 weight (O, I)."""
        group_I = self.groups().to(torch.int64)
        codes = self.codes_OI.float()
        if self.zeros_OG is not None:
            codes = codes - self.zeros_OG.float()[:, group_I]
        return codes * self.scales_OG.float()[:, group_I]

    def groups(self) -> Tensor:
        """Group of each input (I,) int32."""
        if self.group_I is not None:
            return self.group_I
        num_inputs = self.codes_OI.shape[1]
        return torch.arange(num_inputs, dtype=torch.int32) // self.grid.group(num_inputs)


def effective_bits(grid: Grid, num_inputs: int) -> float:
    """Stored bits a weight: its code and its share of a 16-bit scale and, where asymmetric, of a zero point."""
    return grid.bits + (16 + (0 if grid.symmetric else grid.bits)) * grid.num_groups(num_inputs) / num_inputs
