"""A model whose layers round their inputs to 8 bits, a token at a time, as kernels for 8-bit weights and activations do.

Numbers are those of such a kernel, speed is not: what is rounded is multiplied as floating point.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LARGEST = 127  # code of a token's largest activation: symmetric, -128 is not used


def with_int8_activations(model: nn.Module, names: Iterable[str]) -> list[RemovableHandle]:
    """From now on the modules of these names in `model` see rounded inputs, until the handles are removed."""
    return [model.get_submodule(name).register_forward_pre_hook(_round_first) for name in names]


def rounded_per_token(inputs_XI: Tensor) -> Tensor:
    """Each row (I,) at max|x| / 127 a step, in its own precision; a row of zeros stays."""
    wide_XI = inputs_XI.float()
    scale_X1 = wide_XI.abs().amax(-1, keepdim=True) / LARGEST
    scale_X1 = torch.where(scale_X1 == 0, torch.ones_like(scale_X1), scale_X1)
    return (torch.round(wide_XI / scale_X1).clamp(-LARGEST, LARGEST) * scale_X1).to(inputs_XI.dtype)


def _round_first(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rounded_per_token(args[0]), *args[1:])
