"""One decoder block pruned: masks of its linear layers from what they saw, and what each lost."""

from __future__ import annotations

import time

from torch import Tensor, nn

from spark_jobs.errors import RequestError
from training.compress.blocks import Block
from training.compress.hessian import InputStatistics, Solve, output_error
from training.compress.layer_report import LayerReport
from training.compress.layers import prunable_layers, set_weight, weight_OI
from training.compress.masks import check_pattern, magnitude_mask, num_zeros
from training.compress.sparsegpt import sparsegpt
from training.compress.wanda import wanda_mask
from training.compress_spec import PruneSpec


def prune_block(block: Block, spec: PruneSpec) -> list[LayerReport]:
    """Prune the linear layers of `block` in place; a row for each, in the order in which they run.

    All of them are measured in one pass over the block as it was. Raises: RequestError for layers the pattern does not
    divide, before any has changed, and where the method wants inputs and there are none.
    """
    layers = prunable_layers(block.module)
    check_pattern({f"{block.name}.{name}": weight_OI(layer).shape[1] for name, layer in layers.items()}, spec.pattern)
    statistics = block.statistics(layers)
    return [_prune_layer(f"{block.name}.{name}", layer, statistics[name], spec) for name, layer in layers.items()]


def _prune_layer(name: str, layer: nn.Module, seen: InputStatistics, spec: PruneSpec) -> LayerReport:
    started = time.monotonic()
    if spec.method != "magnitude" and not seen.num_tokens:
        raise RequestError(
            f"prune.method {spec.method} wants inputs of {name}, which saw none: give calibration sequences"
        )
    before_OI, hessian_II = weight_OI(layer), seen.hessian_II
    plain_OI = before_OI.masked_fill(magnitude_mask(before_OI, spec), 0.0)
    pruned_OI, solve = pruned(before_OI, plain_OI, seen, spec)
    set_weight(layer, pruned_OI)
    after_OI = weight_OI(layer)  # as it is stored: of the layer's own precision
    stored = layer.get_parameter("weight")
    return LayerReport(
        name=name,
        method=f"{spec.method} {spec.pattern}",
        num_outputs=before_OI.shape[0],
        num_inputs=before_OI.shape[1],
        error_before=output_error(before_OI - plain_OI, before_OI, hessian_II),
        error_after=output_error(before_OI - after_OI, before_OI, hessian_II),
        damping=solve.damping,
        fallback=solve.fallback,
        zeros=num_zeros(after_OI),
        bits=8.0 * stored.element_size(),
        seconds=time.monotonic() - started,
    )


def pruned(weight_OI: Tensor, plain_OI: Tensor, seen: InputStatistics, spec: PruneSpec) -> tuple[Tensor, Solve]:
    """The weight (O, I) with its zeros by the method asked for; `plain_OI` is it by magnitude."""
    match spec.method:
        case "magnitude":
            return plain_OI, Solve(0.0, fallback=False)
        case "wanda":
            return weight_OI.masked_fill(wanda_mask(weight_OI, seen.norm_I, spec), 0.0), Solve(0.0, fallback=False)
        case "sparsegpt":
            after_OI, _mask_OI, solve = sparsegpt(weight_OI, seen.hessian_II, spec)
            return after_OI, solve
