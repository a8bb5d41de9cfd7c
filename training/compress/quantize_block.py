"""One block quantised: codes of its layers, the weights they decode to in place, and what each lost.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from spark_jobs.errors import RequestError, TrainingError
from training.compress import awq, smoothquant
from training.compress.blocks import Block
from training.compress.folding import Smoothing
from training.compress.gptq import gptq
from training.compress.hessian import InputStatistics, Solve, output_error
from training.compress.layer_report import LayerReport
from training.compress.layers import set_weight, weight_OI
from training.compress.quantized import Grid, Quantized, effective_bits
from training.compress.rounding import check_groups, round_to_grid
from training.compress_spec import WANTS_INPUTS, QuantizeSpec


def grid_of(spec: QuantizeSpec, bits: int) -> Grid:
    """Codes of a layer. Methods that round activations too have one symmetric scale an output, as kernels want it."""
    if spec.rounds_activations:
        return Grid(bits, 0, symmetric=True)
    return Grid(bits, spec.group_size, spec.symmetric)


def quantize_block(
    block: Block, spec: QuantizeSpec, bits_of: Mapping[str, int]
) -> tuple[dict[str, Quantized], list[LayerReport]]:
    """Quantise all layers of `block` in place, by their names in the model, in order of execution. bits_of: bits of layers that
    do not have `spec.bits`, by the same names. Weights that are 0 stay 0. After training with rounded weights (qat) the rest
    is rounding.

    All layers are measured in one pass over the block as it was. Raises, before anything has changed: RequestError if groups
    do not fit, if the method wants inputs and there are none, or if scales cannot be moved in such a block.
    """
    layers = block.layers
    grids = {name: grid_of(spec, bits_of.get(f"{block.name}.{name}", spec.bits)) for name in layers}
    dense = {name: weight_OI(layer) for name, layer in layers.items()}
    for name, grid in grids.items():
        num_outputs, num_inputs = dense[name].shape
        check_groups({f"{block.name}.{name}": (num_outputs, num_inputs)}, grid, spec.tail)
    statistics = block.statistics(layers)
    if spec.method in WANTS_INPUTS:
        check_inputs(block.name, statistics, spec.method)
    started = time.monotonic()
    smoothing = smooth_block(block, spec, grids, statistics)
    smoothing_seconds = (time.monotonic() - started) / len(layers)
    quantized, reports = {}, []
    for name, layer in layers.items():
        started = time.monotonic()
        full, smooth_OI = f"{block.name}.{name}", weight_OI(layer)
        hessian_II = hessian_or_identity(statistics[name])
        quantized[full], solve = quantize_layer(smooth_OI, hessian_II, grids[name], spec)
        decoded_OI = quantized[full].weight()
        set_weight(layer, decoded_OI)
        plain_OI = round_to_grid(dense[name], grids[name]).weight()
        reports.append(
            LayerReport(
                name=full,
                method=spec.method,
                num_outputs=smooth_OI.shape[0],
                num_inputs=smooth_OI.shape[1],
                error_before=output_error(plain_OI - dense[name], dense[name], hessian_II),
                error_after=output_error(smoothing.undone(name, decoded_OI) - dense[name], dense[name], hessian_II),
                damping=solve.damping,
                fallback=solve.fallback,
                zeros=int((decoded_OI == 0).sum()),
                bits=effective_bits(grids[name], smooth_OI.shape[1]),
                seconds=smoothing_seconds + time.monotonic() - started,
            )
        )
    return quantized, reports


def smooth_block(
    block: Block, spec: QuantizeSpec, grids: dict[str, Grid], statistics: dict[str, InputStatistics]
) -> Smoothing:
    """Move scales inside the block where the method does so."""
    match spec.method:
        case "awq":
            return awq.smooth(block, statistics, grids)
        case "smoothquant":
            return smoothquant.smooth(block, statistics, spec.smoothing)
        case _:
            return Smoothing()


def quantize_layer(weight_OI: Tensor, hessian_II: Tensor, grid: Grid, spec: QuantizeSpec) -> tuple[Quantized, Solve]:
    mask_OI = weight_OI == 0
    if spec.method == "gptq":
        return gptq(weight_OI, hessian_II, grid, spec.act_order, spec.static_groups, spec.damping, mask_OI)
    return round_to_grid(weight_OI, grid, mask_OI=mask_OI), Solve(0.0, fallback=False)


def hessian_or_identity(seen: InputStatistics) -> Tensor:
    """The Hessian of what a layer saw; where it saw nothing, that of inputs which are independent and alike."""
    return seen.hessian_II if seen.num_tokens else torch.eye(len(seen.abs_sum_I))


def check_inputs(block_name: str, statistics: Mapping[str, InputStatistics], method: str) -> None:
    """Raises: RequestError naming the layers that saw no token."""
    unseen = [f"{block_name}.{name}" for name, seen in statistics.items() if not seen.num_tokens]
    if unseen:
        raise RequestError(
            f"quantize.method {method} wants inputs of {', '.join(unseen[:5])}, which saw none: give calibration sequences, "
            "or set quantize.method to rtn"
        )


def check_fallbacks(reports: Iterable[LayerReport], max_fallbacks: float) -> None:
    """Raises: TrainingError if the method could not be used in too many layers of a model."""
    rows = list(reports)
    fallen = [row.name for row in rows if row.fallback]
    if len(fallen) > max_fallbacks * len(rows):
        raise TrainingError(
            f"{len(fallen)} of {len(rows)} layers were rounded to nearest, as their Hessians have no inverse: "
            f"{', '.join(fallen[:5])}; max_fallbacks is {max_fallbacks:g}: give more calibration sequences, more damping, or "
            "raise it"
        )
