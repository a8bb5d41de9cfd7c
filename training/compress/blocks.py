"""The repeated blocks of a transformer, and one block at a time with the inputs that it sees.

Shapes: B sequences, T tokens, D width. Every batch holds sequences of equal length, so that each token in it is a real one:
nothing is padded, and no mask tells tokens from padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spark_jobs.errors import RequestError
from training.compress.hessian import InputStatistics
from training.compress.layers import is_matrix, prunable_layers, weight_OI

BATCH_TOKENS = 2048  # of one forward; a longer sequence goes alone
HIDDEN = "hidden_states"


@dataclass(frozen=True)
class Call:
    """What a block is called with besides the hidden states: masks, positions and their embeddings, switches."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Block:
    """name: in the model ("model.layers.3"). rows: for each batch, the numbers of its sequences. inputs: for each batch, the
    hidden states (B, T, D). calls: for each batch, the rest of the call."""

    name: str
    module: nn.Module
    rows: list[list[int]]
    inputs: list[Tensor] = field(repr=False)
    calls: list[Call] = field(repr=False)

    @property
    def layers(self) -> dict[str, nn.Module]:
        return prunable_layers(self.module)

    @torch.no_grad()
    def forward(self, batch: int) -> Tensor:
        """Hidden states (B, T, D) behind the block, of one batch."""
        call = self.calls[batch]
        answer = self.module(self.inputs[batch], *call.args, **call.kwargs)
        hidden: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return hidden

    def run(self) -> list[Tensor]:
        """Hidden states behind the block with its present weights, a batch each. As large as the inputs."""
        return [self.forward(batch) for batch in range(len(self.inputs))]

    def advance(self) -> list[Tensor]:
        """The same, in place of the inputs: no more than one batch is held twice."""
        for batch in range(len(self.inputs)):
            self.inputs[batch] = self.forward(batch)
        return self.inputs

    def visit(self, layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> None:
        """Run all batches and show `see` each layer's name and input (B, T, I), in order of execution."""

        def shown(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda module, args: see(name, args[0])

        hooks = [module.register_forward_pre_hook(shown(name)) for name, module in layers.items()]
        try:
            for batch in range(len(self.inputs)):
                self.forward(batch)
        finally:
            for hook in hooks:
                hook.remove()

    def statistics(self, layers: Mapping[str, nn.Module]) -> dict[str, InputStatistics]:
        """Of each layer's inputs, with the block's present weights. layers: by name inside the block, all or some.

        Layers that are given one and the same tensor (queries, keys, values) share one object.
        """
        sums: dict[str, InputStatistics] = {}
        seen: tuple[Tensor, InputStatistics] | None = None

        def see(name: str, inputs: Tensor) -> None:
            nonlocal seen
            if seen is not None and seen[0] is inputs and sums.get(name, seen[1]) is seen[1]:
                sums[name] = seen[1]
                return
            if name not in sums:
                with inputs.device:
                    sums[name] = InputStatistics(inputs.shape[-1])
            sums[name].add(inputs)
            seen = (inputs, sums[name])

        self.visit(layers, see)
        for name, module in layers.items():
            if name not in sums:  # a layer that these inputs do not reach
                sums[name] = InputStatistics(weight_OI(module).shape[1])
        return {name: sums[name] for name in layers}


def blocks_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The blocks by name in the model, first to last.

    They are the one list of `config.num_hidden_layers` modules of one class with matrices in them. Raises: RequestError
    naming the model's class where there is no such list, or more than one (an encoder and a decoder), or where a block has
    parameters that are neither vectors nor matrices (a mixture of experts, a convolution), which would go untouched.
    """
    who, wanted = type(model).__name__, getattr(model.config, "num_hidden_layers", None)
    lists = {
        name: list(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == wanted and _alike(module)
    }
    outer = {n: found for n, found in lists.items() if not any(n.startswith(other + ".") for other in lists)}
    if model.config.is_encoder_decoder or len(outer) != 1:
        raise RequestError(
            f"{who} cannot be compressed: wanted one list of {wanted} equal blocks as in Llama, GPT-2 or BERT, found "
            f"{', '.join(sorted(outer)) or 'none'}; give it another model or leave compression out"
        )
    ((name, found),) = outer.items()
    blocks = {f"{name}.{i}": module for i, module in enumerate(found)}
    for block, module in blocks.items():
        for parameter, value in module.named_parameters():
            if value.ndim > 2:
                raise RequestError(
                    f"{who} cannot be compressed: {block}.{parameter} has shape {tuple(value.shape)}, wanted matrices of "
                    "linear layers (experts and convolutions are not treated); give it a dense transformer"
                )
    return blocks


def _alike(modules: nn.ModuleList) -> bool:
    return len({type(m) for m in modules}) == 1 and any(is_matrix(m) for m in modules[0].modules())


class _Reached(Exception):
    """Ends a forward once the block is reached."""


def first_block(model: PreTrainedModel, sequences_NT: Iterable[Tensor]) -> tuple[Block, list[list[Call]]]:
    """The first block with its inputs, and for each block the calls of all batches.

    sequences_NT: 1-D int64 each, of any length of at least 1. The longest runs through the whole model to see whether all
    blocks are called alike; if they are, every batch stops at the first block, else (sliding windows in some) each runs
    through once.
    """
    sequences = list(sequences_NT)
    blocks = blocks_of(model)
    modules = list(blocks.values())
    _, probed = _calls_of(model, modules, max(sequences, key=len)[None], stop=False)
    alike = all(_same(probed[0], call) for call in probed)
    rows, inputs = batches_of(sequences), []
    calls: list[list[Call]] = [[] for _ in modules]
    for batch in rows:
        tokens_BT = torch.stack([sequences[i] for i in batch])
        hidden, seen = _calls_of(model, modules, tokens_BT, stop=alike)
        inputs.append(hidden)
        for k in range(len(modules)):
            calls[k].append(seen[0] if alike else seen[k])
    (name, module), *_ = blocks.items()
    return Block(name, module, rows, inputs, calls[0]), calls


def batches_of(sequences: list[Tensor]) -> list[list[int]]:
    """Numbers of sequences of equal length, BATCH_TOKENS at most together, in order of the first of each batch."""
    lengths: dict[int, list[int]] = {}
    for i, tokens_T in enumerate(sequences):
        lengths.setdefault(len(tokens_T), []).append(i)
    batches = []
    for length, members in lengths.items():
        size = max(1, BATCH_TOKENS // length)
        batches += [members[i : i + size] for i in range(0, len(members), size)]
    return sorted(batches)


@torch.no_grad()
def _calls_of(
    model: PreTrainedModel, modules: list[nn.Module], tokens_BT: Tensor, stop: bool
) -> tuple[Tensor, list[Call]]:
    """Hidden states before the first of `modules`, and the rest of what each is called with."""
    hidden: list[Tensor] = []
    calls: list[Call] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = {key: value for key, value in kwargs.items() if key != HIDDEN}
        if not calls:
            hidden.append(args[0] if args else kwargs[HIDDEN])
        calls.append(Call(args[1:], rest))
        if stop:
            raise _Reached

    hooks = [module.register_forward_pre_hook(catch, with_kwargs=True) for module in modules]
    switches = {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
    try:
        model.base_model(input_ids=tokens_BT.to(model.device), **switches)
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return hidden[0], calls


def _same(one: Call, other: Call) -> bool:
    """Whether two blocks are given the very same things."""
    return (
        len(one.args) == len(other.args)
        and one.kwargs.keys() == other.kwargs.keys()
        and all(_equal(a, b) for a, b in zip(one.args, other.args, strict=True))
        and all(_equal(value, other.kwargs[key]) for key, value in one.kwargs.items())
    )


def _equal(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, bool | int | float | str) and type(one) is type(other) and one == other)
