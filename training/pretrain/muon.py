"""Muon (Jordan et al. 2024) for matrices of hidden layers, AdamW for all other parameters, in one optimizer.

Orthogonalising a shard is not a shard of the orthogonal matrix: with two ranks it is 39% off (Moonlight#27). So each
matrix is gathered whole, every rank does the same iteration, and keeps its part of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic, steepest at 0; https://kellerjordan.github.io/posts/muon/
ITERATIONS = 5
LEAST_NORM = 1e-7
RMS_OF_ADAMW = 0.2  # root mean square of AdamW's updates, arXiv:2502.16982 section 2.2: one rate then serves both


class Muon(torch.optim.Optimizer):
    """Groups with `orthogonal` set are updated by Muon with Nesterov momentum, the others by AdamW.

    The iteration runs in `dtype`; None: bf16 on CUDA, the parameter's own elsewhere. State: momentum_buffer, or AdamW's
    step, exp_avg, exp_avg_sq.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, betas: tuple[float, float],
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "orthogonal": False})
        self.momentum, self.betas, self.dtype = momentum, betas, dtype
        self.orthogonal = {p for group in self.param_groups if group["orthogonal"] for p in group["params"]}

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        zeros = torch.zeros_like(parameter.detach())
        if parameter in self.orthogonal:
            return {"momentum_buffer": zeros}
        return {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter].update(self.initial_state(parameter))
            if group["orthogonal"]:
                for parameter in parameters:
                    self._orthogonal_update(parameter, group["lr"], group["weight_decay"])
            elif parameters:
                self._adamw_update(parameters, group["lr"], group["weight_decay"])

    def _orthogonal_update(self, parameter: Tensor, rate: float, weight_decay: float) -> None:
        assert parameter.grad is not None
        buffer = self.state[parameter]["momentum_buffer"]
        buffer.lerp_(parameter.grad, 1 - self.momentum)
        update = parameter.grad.lerp(buffer, self.momentum)
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        dtype = self.dtype or (torch.bfloat16 if whole.is_cuda else whole.dtype)
        whole = orthogonalised(whole.to(dtype)).to(parameter.dtype)
        parameter.mul_(1 - rate * weight_decay)
        adjusted = rate * RMS_OF_ADAMW * math.sqrt(max(parameter.shape))
        parameter.add_(_like(whole, parameter), alpha=-adjusted)

    def _adamw_update(self, parameters: list[Tensor], rate: float, weight_decay: float) -> None:
        states = [self.state[p] for p in parameters]
        adamw(
            parameters, [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [], [s["step"] for s in states],
            foreach=True, amsgrad=False, beta1=self.betas[0], beta2=self.betas[1], lr=rate, weight_decay=weight_decay,
            eps=1e-8, maximize=False,
        )  # fmt: skip


def orthogonalised(matrix: Tensor) -> Tensor:
    """Newton-Schulz towards U V^T of the singular value decomposition U S V^T; singular values end in about 0.7 to 1.2.

    In/out (R, C) in the dtype given.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=LEAST_NORM)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def _like(whole: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor, which every rank has, laid out as the parameter; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=parameter.placements)
