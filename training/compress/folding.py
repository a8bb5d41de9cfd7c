"""Scales that move from a layer's inputs into its weight: x W^T = (x / s) (W s)^T. What gave x is divided by s once and for all.

Shapes: O outputs, I inputs. A source gives the inputs of its layers and nothing else: a norm before queries, keys and values, or
before a feed-forward part; the values before the output projection, where there are as many of them; the ungated half of a
feed-forward part before its last matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spark_jobs.errors import RequestError
from training.compress.blocks import Block
from training.compress.layers import is_matrix, set_weight, weight_OI

# (what gives the inputs, what must stand beside it, what they go into): names inside one part of a block
PRODUCTS = (("v_proj", "k_proj", "o_proj"), ("up_proj", "gate_proj", "down_proj"))


@dataclass(frozen=True)
class Edge:
    """Names inside the block. source: a norm or a matrix, whose outputs are the inputs of `layers`."""

    source: str
    layers: tuple[str, ...]


@dataclass
class Smoothing:
    """What folding did, by layer: its weight is now W * inputs (I,) / outputs (O,); where one is missing, 1."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def undone(self, name: str, weight_OI: Tensor) -> Tensor:
        """`weight_OI` of the folded layer as it acts on what the layer's inputs were."""
        if name in self.inputs:
            weight_OI = weight_OI / self.inputs[name]
        return weight_OI * self.outputs[name][:, None] if name in self.outputs else weight_OI


@torch.no_grad()
def find_edges(block: Block) -> list[Edge]:
    """Edges of a block in order of execution, found by what its modules hand to each other in one batch.

    Raises: RequestError naming the block's class where its first matrix does not read a norm of the block.
    """
    outputs: dict[str, Tensor] = {}  # kept, so that no two tensors can have one identity
    readers: dict[str, list[str]] = {}

    def gave(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda module, args, output: outputs.update({name: output})

    def read(name: str, inputs: Tensor) -> None:
        source = next((norm for norm, output in outputs.items() if output is inputs), None)
        readers.setdefault(source or "", []).append(name)

    norms = {n: m for n, m in block.module.named_modules() if _is_norm(m)}
    hooks = [norm.register_forward_hook(gave(name)) for name, norm in norms.items()]
    layers = block.layers
    first = Block(block.name, block.module, block.rows[:1], block.inputs[:1], block.calls[:1])
    try:
        first.visit(layers, read)
    finally:
        for hook in hooks:
            hook.remove()
    if next(iter(readers), "") == "":
        raise _refusal(block, "its first matrix does not read a norm of the block")
    edges = [Edge(source, tuple(names)) for source, names in readers.items() if source]
    return sorted(edges + _products(layers), key=lambda edge: list(layers).index(edge.layers[0]))


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 1 and not list(module.children())


def _products(layers: dict[str, nn.Module]) -> list[Edge]:
    edges = []
    for source, beside, target in PRODUCTS:
        for name in layers:
            part, dot, last = name.rpartition(".")
            names = [part + dot + n for n in (source, beside, target)]
            if last == source and all(n in layers for n in names):
                num_outputs, num_inputs = weight_OI(layers[name]).shape[0], weight_OI(layers[names[2]]).shape[1]
                if num_outputs == num_inputs:  # not where several query heads share one value head
                    edges.append(Edge(name, (names[2],)))
    return edges


@torch.no_grad()
def fold(block: Block, scales: Iterable[tuple[Edge, Tensor]]) -> Smoothing:
    """Fold each edge's scales (I,) into its source and its layers; the block computes what it did.

    Raises: RequestError naming the block's class if it does not, as where a source is read elsewhere too.
    """
    before = block.forward(0)
    smoothing = Smoothing()
    for edge, scale_I in scales:
        _divide_outputs(block.module.get_submodule(edge.source), scale_I)
        smoothing.outputs[edge.source] = scale_I
        for name in edge.layers:
            layer = block.module.get_submodule(name)
            set_weight(layer, weight_OI(layer) * scale_I)
            smoothing.inputs[name] = scale_I
    change = float((block.forward(0) - before).float().norm() / before.float().norm())
    if not change <= torch.finfo(before.dtype).eps ** 0.5:
        raise _refusal(block, f"scales moved between its modules change its outputs by {change:.2g}")
    return smoothing


def _divide_outputs(source: nn.Module, scale_O: Tensor) -> None:
    """Divide what a matrix or a norm gives, bias included; a norm that multiplies by 1 + w gets (1 + w) / s - 1."""
    if is_matrix(source):
        set_weight(source, weight_OI(source) / scale_O[:, None])
    else:
        weight_O: Tensor = source.weight  # type: ignore[assignment]
        offset = 1.0 if adds_one(source) else 0.0
        weight_O.copy_((weight_O.float() + offset) / scale_O - offset)
    bias_O = getattr(source, "bias", None)
    if bias_O is not None:
        bias_O.copy_(bias_O.float() / scale_O)


@torch.no_grad()
def adds_one(norm: nn.Module) -> bool:
    """Whether the norm multiplies by 1 + weight, as Gemma's do: with weight 0 it still gives something."""
    probe = copy.deepcopy(norm)
    for parameter in probe.parameters():
        parameter.zero_()
    weight_O: Tensor = probe.weight  # type: ignore[assignment]
    ramp_1O = torch.linspace(-1, 1, len(weight_O), dtype=weight_O.dtype, device=weight_O.device)[None]
    return bool((probe(ramp_1O) != 0).any())


def _refusal(block: Block, reason: str) -> RequestError:
    return RequestError(
        f"{type(block.module).__name__} ({block.name}) cannot be smoothed: {reason}; blocks with a norm before each part, as "
        "Llama's, are wanted: set quantize.method to gptq or rtn"
    )
