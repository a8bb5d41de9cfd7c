"""SmoothQuant: part of what is large in activations moves into weights, before both are rounded to 8 bits.

Shapes: I inputs of the layers of one edge. Source: arXiv 2211.10438 section 4; the largest absolute values, as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.compress.blocks import Block
from training.compress.folding import Smoothing, find_edges, fold
from training.compress.hessian import InputStatistics
from training.compress.layers import weight_OI

SMALLEST = 1e-5  # of a scale: what an input that is almost always 0 would be divided by


def smoothing_scales(input_max_I: Tensor, weight_max_I: Tensor, alpha: float) -> Tensor:
    """s = max|x|^alpha / max|w|^(1 - alpha) of each input; 1 where either is 0 and there is nothing to balance."""
    scale_I = input_max_I**alpha / weight_max_I ** (1 - alpha)
    idle_I = (input_max_I == 0) | (weight_max_I == 0)
    return torch.where(idle_I, torch.ones_like(scale_I), scale_I).clamp(min=SMALLEST)


def smooth(block: Block, statistics: dict[str, InputStatistics], alpha: float) -> Smoothing:
    """Fold SmoothQuant's scales into a block. statistics: of its layers' inputs, by name inside the block.

    Raises: RequestError where the block is not one that scales can be moved in.
    """
    scales = []
    for edge in find_edges(block):
        layers = [block.module.get_submodule(name) for name in edge.layers]
        weight_max_I = torch.stack([weight_OI(layer).abs().amax(0) for layer in layers]).amax(0)
        scales.append((edge, smoothing_scales(statistics[edge.layers[0]].abs_max_I, weight_max_I, alpha)))
    return fold(block, scales)
