"""What can be said against a recipe before anything is computed: shapes, formats, calibration that is missing."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from spark_jobs.errors import RequestError
from training.compress import write_compressed_tensors, write_gguf, write_torchao
from training.compress.blocks import blocks_of
from training.compress.compressed import Compressed
from training.compress.layers import prunable_layers, weight_OI
from training.compress.masks import check_pattern
from training.compress.quantize_block import grid_of
from training.compress.quantized import Grid, Quantized
from training.compress.rounding import check_groups
from training.compress.shrink import sizes_of
from training.compress.slice_model import check_family
from training.compress_spec import QuantizeSpec, RecipeSpec

CHECKS = {
    "compressed-tensors": write_compressed_tensors.check,
    "gguf": write_gguf.check,
    "torchao": write_torchao.check,
}


def check_plan(model: PreTrainedModel, recipe: RecipeSpec, num_sequences: int) -> None:
    """Widths are checked where the recipe does not change them first.

    Raises: RequestError naming the model where it is no stack of blocks, every layer whose inputs are no whole groups, what
    the format of the files cannot hold, the setting for which sequences are missing, or sizes that shrink cannot give.
    """
    layers = layer_shapes(model)
    wants = recipe.wants_calibration
    if wants and not num_sequences:
        raise RequestError(f"recipe {recipe.name}: {wants} wants calibration sequences, there are none: give some")
    if recipe.shrink is None:
        check_shapes(model, recipe, layers)
    else:
        check_family(model)
        sizes_of(model.config, recipe.shrink)


def layer_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every matrix of every block, by name in the model."""
    return {
        f"{block}.{name}": (weight_OI(layer).shape[0], weight_OI(layer).shape[1])
        for block, module in blocks_of(model).items()
        for name, layer in prunable_layers(module).items()
    }


def check_shapes(model: PreTrainedModel, recipe: RecipeSpec, shapes: dict[str, tuple[int, int]]) -> None:
    """Whether layers of these shapes can be pruned, quantised and written as the recipe says."""
    if recipe.prune is not None:
        check_pattern({name: inputs for name, (_, inputs) in shapes.items()}, recipe.prune.pattern)
    if recipe.quantize is None:
        return
    spec, planned = recipe.quantize, dict(shapes)
    if spec.tied_head == "once":
        planned[tied_name(model)] = tuple(model.get_input_embeddings().weight.shape)
    check_groups(planned, grid_of(spec, spec.bits), spec.tail)
    if recipe.export in CHECKS:
        quantized = {name: _blank(shape, spec) for name, shape in planned.items()}
        CHECKS[recipe.export](Compressed(model, quantized))


def _blank(shape: tuple[int, int], spec: QuantizeSpec) -> Quantized:
    """Codes of a shape without memory behind them, for checks that look at shapes and grids."""
    grid: Grid = grid_of(spec, spec.bits)
    codes_OI = torch.empty(shape, dtype=torch.int8, device="meta")
    scales_OG = torch.empty(shape[0], grid.num_groups(shape[1]), dtype=torch.float16, device="meta")
    moves = spec.method == "gptq" and spec.act_order and not spec.static_groups
    groups = torch.arange(shape[1], dtype=torch.int32) // grid.group(shape[1])
    return Quantized(grid, codes_OI, scales_OG, None, groups.flip(0) if moves else None)


def tied_name(model: PreTrainedModel) -> str:
    """Name of the embedding that is the head too. Raises: RequestError where the head is another matrix."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        raise RequestError(
            f"quantize.tied_head once: the head of this {type(model).__name__} is not its embedding: set it to skip"
        )
    names: list[str] = [name for name, module in model.named_modules() if module is embedding]
    return names[0]
