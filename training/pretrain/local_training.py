"""Replicas that train on their own and meet every few steps: local SGD, DiLoCo, federated averaging by tokens.

Each replica is a whole model on one rank, with an optimizer of its own. Every `every` steps, and after the last one,
the outer step is taken on delta = sum_r w_r (outer - theta_r), where w_r is replica r's share of the targets since the
last meeting, or 1 / R; all replicas then go on from the outer weights, and keep their inner optimizer's state.

    average     outer <- outer - delta, the weighted mean of the replicas      arXiv:1805.09767, arXiv:1602.05629
    nesterov    m <- momentum m + delta; outer <- outer - rate (delta + momentum m)     DiLoCo, arXiv:2311.08105
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from training.loop_spec import LocalSpec
from training.pretrain.loss import count_targets
from training.pretrain.mesh import Mesh
from training.pretrain.objectives import Inputs
from training.pretrain.optimizer import clip_gradients, optimizer_state, scale_gradients, set_rate
from training.pretrain.parallel import ParallelModel
from training.pretrain.progress import StepFacts


class ReplicaMesh(Mesh):
    """Ranks as replicas: they read rows of their own, sum their counts, and shard nothing over one another."""

    @property
    def fsdp(self) -> DeviceMesh:
        return self.weights["fsdp"]  # this rank alone: LocalSpec wants one shard

    @classmethod
    def of(cls, mesh: Mesh) -> ReplicaMesh:
        return cls(mesh.ranks, mesh.degrees, mesh.weights, mesh.sequence)


class OuterOptimizer:
    """The weights that all replicas last agreed on, and the momentum of their steps; the same on every rank."""

    def __init__(self, weights: dict[str, Tensor], spec: LocalSpec) -> None:
        """weights: of this replica by name, whole tensors; they are moved in place, and must start equal on all ranks."""
        self.spec, self.weights = spec, weights
        self.outer = {name: tensor.clone() for name, tensor in weights.items()}
        self.momentum: dict[str, Tensor] = {}
        if spec.outer == "nesterov":
            self.momentum = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}

    @torch.no_grad()
    def step(self, num_targets: float) -> None:
        """Take the outer step and give its weights to this replica. A collective; num_targets: this replica's since the
        last one. Without any target on any replica nothing moves."""
        share = self._share(num_targets)
        for name, tensor in self.weights.items():
            delta = (self.outer[name] - tensor).mul_(share)
            dist.all_reduce(delta)
            self.outer[name] -= self._update(name, delta)
            tensor.copy_(self.outer[name])

    def _share(self, num_targets: float) -> float:
        """Of this replica in the mean, between 0 and 1."""
        if self.spec.weight_by == "equal":
            return 1.0 / dist.get_world_size()
        device = next(iter(self.weights.values())).device
        total = torch.tensor(num_targets, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return num_targets / max(float(total), 1.0)

    def _update(self, name: str, delta: Tensor) -> Tensor:
        if not self.momentum:
            return delta
        buffer = self.momentum[name].mul_(self.spec.outer_momentum).add_(delta)
        return (delta + self.spec.outer_momentum * buffer).mul_(self.spec.outer_rate)


class LocalTraining:
    """What the trainer does otherwise when replicas train on their own: its step, its checkpoint, the meetings."""

    def __init__(self, model: ParallelModel, optimizer: torch.optim.Optimizer, spec: LocalSpec) -> None:
        self.spec, self.ranks = spec, model.mesh.ranks
        self.weights = {name: _local(p) for name, p in model.module.named_parameters()}
        self.outer = OuterOptimizer(self.weights, spec)
        self.targets = torch.zeros((), dtype=torch.float64)  # of this replica since the last meeting
        self.inner = {
            f"{name}.{key}": _local(value)
            for name, p in model.module.named_parameters()
            for key, value in optimizer_state(optimizer, p).items()
        }

    def state(self) -> dict[str, Any]:
        """For checkpoints, sharing memory with what is live. What replicas do not share has a key of each rank.

        A checkpoint is written at a meeting, so `model.` is the same on all ranks, and equal to `outer.`.
        """
        own = f"replica_{self.ranks.rank}"
        state: dict[str, Any] = {f"model.{name}": tensor for name, tensor in self.weights.items()}
        state |= {f"outer.{name}": tensor for name, tensor in self.outer.outer.items()}
        state |= {f"optimizer.{name}.outer_momentum": tensor for name, tensor in self.outer.momentum.items()}
        state |= {f"{own}.{name}": tensor for name, tensor in self.inner.items()}
        return state | {f"{own}.targets": self.targets}

    def step(
        self, model: ParallelModel, optimizer: torch.optim.Optimizer, parts: Sequence[Inputs], rate: float,
        clip_norm: float, judge: Callable[[float, float], str], scale: float = 1.0, measure_noise: bool = False,
    ) -> StepFacts:  # fmt: skip
        """One inner step of every replica, in the place of `trainer.train_step`.

        A replica's loss is divided by its own targets, its gradients are clipped by their own norm. Told, and judged by all
        alike, are the mean loss over all targets and the root mean square of the norms; one replica that is not finite
        makes both so, and then no replica steps.
        """
        assert not measure_noise  # TrainSpec refuses it
        num_targets = sum(count_targets(part.targets_BS) for part in parts)
        num_tokens = sum(part.num_tokens for part in parts)
        share = model.forward_backward(parts, max(num_targets, 1) / scale)
        scale_gradients(model.module, 1 / scale)
        norm = clip_gradients(model.module, clip_norm)
        nats, squares, targets, tokens = model.mesh.sum_once(
            [share / scale * max(num_targets, 1), norm * norm, num_targets, num_tokens]
        )
        loss, norm = nats / max(targets, 1.0), math.sqrt(squares / self.ranks.world_size)
        trouble = judge(loss, norm)
        if not trouble:
            set_rate(optimizer, rate)
            optimizer.step()
            self.targets += num_targets
        optimizer.zero_grad()
        return StepFacts(loss, rate, norm, int(tokens), trouble)

    def after_step(self, step: int, is_last: bool) -> None:
        """Meet, if it is time: `step` counts applied steps from 1. A collective."""
        if step % self.spec.every == 0 or is_last:
            self.outer.step(float(self.targets))
            self.targets.zero_()


def _local(tensor: Tensor) -> Tensor:
    """The rank's whole tensor, sharing memory: FSDP over one rank shards into one."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
