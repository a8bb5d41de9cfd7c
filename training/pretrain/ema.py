"""An exponential moving average of the weights, beside them, each rank its own shard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def decay_at(num_updates: int, decay: float) -> float:
    """Short memory at first, so that the random start is forgotten: min(decay, (1 + t) / (10 + t)).

    t is the number of optimizer steps done, which a checkpoint has: a resumed run goes on with the same decay.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class Average:
    """`shadow` by parameter name, in at least fp32, laid out as the parameters; it starts as their copy."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: _wide(p.detach()).clone() for name, p in trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, num_updates: int) -> None:
        """Move towards the weights after optimizer step `num_updates`, counted from 1."""
        weight = 1.0 - decay_at(num_updates, self.decay)
        for name, parameter in trained(model):
            _local(self.shadow[name]).lerp_(_wide(_local(parameter.detach())), weight)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint, under names of its own: never in the place of the weights."""
        return {f"ema.{name}": tensor for name, tensor in self.shadow.items()}

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """While inside, the model has the averaged weights; afterwards its own again, to the bit, whatever happens."""
        own = {name: _local(p.detach()).clone() for name, p in trained(model)}
        try:
            with torch.no_grad():
                for name, parameter in trained(model):
                    _local(parameter.detach()).copy_(_local(self.shadow[name]))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trained(model):
                    _local(parameter.detach()).copy_(own[name])


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that training changes, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
