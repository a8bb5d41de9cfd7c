"""Weights that are 0 before training stay 0 through it: what was pruned stays pruned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.pretrain.checkpointing import TRAINING_ONLY
from training.pretrain.ema import trained


class KeptZeros:
    """Masks of the matrices' zeros, each rank those of its own shards.

    Made before a checkpoint is loaded, from the model that training starts from; a resumed run finds the same ones.
    Embeddings, and a head tied to one, are left out: their rows of padding are zeros that may be learned.
    An average starts at the same zeros and averages nothing else; replicas that meet have them in common.
    """

    def __init__(self, model: nn.Module) -> None:
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self.masks: list[tuple[Tensor, Tensor]] = []
        for name, parameter in trained(model):
            if parameter.ndim < 2 or id(parameter) in embeddings or TRAINING_ONLY in name.split("."):
                continue
            weight = _local(parameter.detach())
            mask = weight == 0
            if bool(mask.any()):
                self.masks.append((weight, mask))

    def after_step(self) -> None:
        """Put the zeros back into weights that an optimizer has just moved."""
        for weight, mask in self.masks:
            weight.masked_fill_(mask, 0.0)


def keep_zeros(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """From now on every step of `optimizer` leaves the zeros of `model`'s matrices."""
    zeros = KeptZeros(model)
    optimizer.register_step_post_hook(lambda *_: zeros.after_step())


def _local(tensor: Tensor) -> Tensor:
    """Sharing memory, so that what is filled here is filled in the model."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
