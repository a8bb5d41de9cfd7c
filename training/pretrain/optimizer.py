"""AdamW with two groups, and clipping by the global gradient norm under sharding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.specs import OptimizerSpec


def make_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW over `model`'s parameters; norms and biases (fewer than two dimensions) are not decayed.

    The rule is the number of dimensions, not a name: name patterns miss `ln_1`, `norm1`, `ln_f` (transformers#35927).
    """
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=spec.learning_rate,
        betas=(spec.beta1, spec.beta2),
        foreach=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(model: nn.Module, clip_norm: float) -> float:
    """Scale gradients down to `clip_norm` and return their L2 norm over all parameters and ranks before that.

    A non-finite norm leaves the gradients alone; the caller decides.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    total: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if torch.isfinite(total):
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, total)
    return float(total)
