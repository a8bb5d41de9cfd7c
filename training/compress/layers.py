"""The matrices of a block that are pruned and quantised, in one orientation. Shapes: O outputs, I inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_matrix(module: nn.Module) -> bool:
    """A linear layer, of torch or GPT-2's own, which stores its weight as (I, O)."""
    return isinstance(module, nn.Linear | Conv1D)


def weight_OI(module: nn.Module) -> Tensor:  # noqa: N802 O, I are axes
    """A detached fp32 copy of the weight."""
    weight = module.get_parameter("weight").detach()
    return (weight.T if isinstance(module, Conv1D) else weight).to(torch.float32, copy=True).contiguous()


def set_weight(module: nn.Module, weight_OI: Tensor) -> None:
    """Put a weight in place of the module's, in the module's dtype."""
    with torch.no_grad():
        stored = module.get_parameter("weight")
        stored.copy_(weight_OI.T if isinstance(module, Conv1D) else weight_OI)


def prunable_layers(block: nn.Module) -> dict[str, nn.Module]:
    """Every matrix inside a block's module by its name there ("self_attn.q_proj"), in the order of the module, which is
    that of execution in the models of `training.compress.blocks`."""
    return {name: module for name, module in block.named_modules() if is_matrix(module)}
