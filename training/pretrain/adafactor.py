"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) whose state may be sharded.

torch.optim.Adafactor raises on a DTensor (pow_ on _NormPartial), and its norms would be those of a shard. Here every
mean that leaves a shard is a sum over ranks first, so any layout gives the numbers of one rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

BETA2_DECAY = -0.8  # beta2 = 1 - step ** BETA2_DECAY, section 7.2
LEAST_SCALE = 1e-3  # of a parameter's root mean square, section 8
CLIP = 1.0  # root mean square of an update above which it is scaled down, section 6


class Adafactor(torch.optim.Optimizer):
    """Factored second moments, clipped updates, a rate relative to the parameter's scale, decoupled weight decay.

    The numbers are those of torch.optim.Adafactor, but for its own decay of the rate, min(lr, 1 / sqrt(step)): the
    schedule is the caller's. State of a parameter (..., R, C): step, row_var (..., R, 1), col_var (..., 1, C); of a
    vector: step, variance.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        squared = torch.zeros_like(parameter.detach())
        if parameter.ndim < 2:
            return {"step": torch.tensor(0.0), "variance": squared}
        return {"step": torch.tensor(0.0), "row_var": _sum(squared, -1), "col_var": _sum(squared, -2)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.state[parameter].update(self.initial_state(parameter))
                _update(parameter, parameter.grad, self.state[parameter], group["lr"], group["weight_decay"])


def _update(parameter: Tensor, grad: Tensor, state: dict[str, Tensor], rate: float, weight_decay: float) -> None:
    state["step"] += 1
    weight = float(state["step"]) ** BETA2_DECAY
    scale = max(LEAST_SCALE, _root_mean_square(parameter))
    parameter.mul_(1 - rate * weight_decay)
    epsilon = torch.finfo(parameter.dtype).eps
    squared = grad * grad
    if parameter.ndim < 2:
        state["variance"].lerp_(squared, weight)
        variance = state["variance"].clamp(min=epsilon**2)
    else:
        rows, columns = parameter.shape[-2:]
        state["row_var"].lerp_(_sum(squared, -1) / columns, weight)
        state["col_var"].lerp_(_sum(squared, -2) / rows, weight)
        mean = (_sum(state["row_var"], -2) / rows).clamp(min=epsilon)
        variance = (state["row_var"] * (state["col_var"] / mean)).clamp_(min=epsilon**2)
    update = variance.rsqrt_().mul_(grad)
    parameter.add_(update, alpha=-rate * scale / max(1.0, _root_mean_square(update) / CLIP))


def _sum(tensor: Tensor, dim: int) -> Tensor:
    """Sum over one dimension, kept as 1; over ranks too where they share it. Other dimensions stay sharded as they are.

    A mean would be wrong where shards are of unequal size.
    """
    total = tensor.sum(dim=dim, keepdim=True)
    if not isinstance(total, DTensor):
        return total
    placements = [Replicate() if isinstance(place, Partial) else place for place in total.placements]
    return total.redistribute(placements=placements)


def _root_mean_square(tensor: Tensor) -> float:
    total = (tensor * tensor).sum()
    return math.sqrt(float(total.full_tensor() if isinstance(total, DTensor) else total) / tensor.numel())
