"""A recipe followed on a model in memory: shrink, prune, quantise, block after block.

Recovery is a training of its own between the two stages; here it is left out. Both stages change the model they are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark_jobs.errors import DataError
from training.compress.blocks import blocks_of
from training.compress.compressed import Compressed
from training.compress.kept_blocks import Treated, kept, kept_weights
from training.compress.layer_report import LayerReport
from training.compress.layers import prunable_layers, weight_OI
from training.compress.masks import num_zeros, valid_groups
from training.compress.mixed_bits import assign, sensitivity
from training.compress.plan import check_plan, check_shapes, layer_shapes, tied_name
from training.compress.prune_block import prune_block
from training.compress.qat import train_rounded
from training.compress.quantize_block import check_fallbacks, grid_of, quantize_block
from training.compress.quantized import Quantized, effective_bits
from training.compress.rounding import round_to_grid
from training.compress.sequential import over_blocks
from training.compress.shrink import shrink
from training.compress_spec import PruneSpec, QuantizeSpec, RecipeSpec

LOST_ZEROS = 0.001  # of all weights, which may differ by rounding counts down a row


def compress(
    model: PreTrainedModel, calibration_NT: Sequence[Tensor], recipe: RecipeSpec, scratch: Path | None = None
) -> Compressed:
    """All of a recipe but its recovery. calibration_NT: 1-D int64 each; may be empty where the recipe looks at weights alone.
    scratch: where finished blocks are kept, for a process that is killed; None: nowhere.

    Raises: RequestError before anything is computed if the recipe does not fit the model; TrainingError if more layers than
    quantize.max_fallbacks had to be rounded to nearest.
    """
    thin, reports = shrink_and_prune(model, calibration_NT, recipe, scratch)
    return quantize(thin, calibration_NT, recipe, scratch, reports)


def shrink_and_prune(
    model: PreTrainedModel, calibration_NT: Sequence[Tensor], recipe: RecipeSpec, scratch: Path | None = None
) -> tuple[PreTrainedModel, list[LayerReport]]:
    """The first stage: a model of fewer or smaller parts (another object) or with zeros, or as it was."""
    check_plan(model, recipe, len(calibration_NT))
    if recipe.shrink is not None:
        model = shrink(model, calibration_NT, recipe.shrink)
        check_shapes(model, recipe, layer_shapes(model))
    if recipe.prune is None:
        return model, []
    spec = recipe.prune
    folder = scratch / "pruned" if scratch else None
    treat = kept(
        folder, _signature(recipe, calibration_NT), "prune", lambda block: Treated(reports=prune_block(block, spec))
    )
    treated = over_blocks(model, calibration_NT, treat)
    return model, [report for one in treated for report in one.reports]


def quantize(
    model: PreTrainedModel,
    calibration_NT: Sequence[Tensor],
    recipe: RecipeSpec,
    scratch: Path | None = None,
    reports: Sequence[LayerReport] = (),
) -> Compressed:
    """The second stage, of a model that may have been recovered; without `quantize` nothing is left to do. Zeros stay zeros.

    reports: of the first stage, which go before this one's.
    Raises: DataError if a pruned model has lost its zeros on the way here.
    """
    if recipe.prune is not None:
        check_still_pruned(model, recipe.prune)
    if recipe.quantize is None:
        return Compressed(model, {}, list(reports))
    spec = recipe.quantize
    check_plan(model, recipe.model_copy(update={"shrink": None}), len(calibration_NT))
    signature, bits_of = _signature(recipe, calibration_NT), mixed_bits(model, calibration_NT, spec)
    if spec.method == "qat":
        trained = scratch / "trained.safetensors" if scratch else None
        kept_weights(trained, signature, model, layer_shapes(model), lambda: train_rounded(model, calibration_NT, spec))
    folder = scratch / "quantized" if scratch else None
    treat = kept(folder, signature, "quantize", lambda block: Treated(*quantize_block(block, spec, bits_of)))
    treated = over_blocks(model, calibration_NT, treat)
    if spec.tied_head == "once":
        treated.append(quantize_embedding(model, spec))
    quantized = {name: codes for one in treated for name, codes in one.quantized.items()}
    made = [report for one in treated for report in one.reports]
    check_fallbacks(made, spec.max_fallbacks)
    return Compressed(model, quantized, [*reports, *made])


def mixed_bits(model: PreTrainedModel, calibration_NT: Sequence[Tensor], spec: QuantizeSpec) -> dict[str, int]:
    """Bits of each layer where they are shared out by sensitivity; none where all have `spec.bits`."""
    if not spec.mixed_bits:
        return {}
    sizes = {name: outputs * inputs for name, (outputs, inputs) in layer_shapes(model).items()}
    return assign(sensitivity(model, calibration_NT, spec), sizes, spec.mixed_bits)


def quantize_embedding(model: PreTrainedModel, spec: QuantizeSpec) -> Treated:
    """The embedding that is the head too, rounded to nearest once: codes and scales are shared, as the weight is."""
    name, embedding = tied_name(model), model.get_input_embeddings()
    dense_OI = embedding.weight.detach().float().clone()
    grid = grid_of(spec, spec.bits)
    quantized: Quantized = round_to_grid(dense_OI, grid)
    decoded_OI = quantized.weight()
    with torch.no_grad():
        embedding.weight.copy_(decoded_OI)
    lost = float((decoded_OI - dense_OI).square().sum() / dense_OI.square().sum())
    report = LayerReport(
        name=name,
        method="rtn",
        num_outputs=dense_OI.shape[0],
        num_inputs=dense_OI.shape[1],
        error_before=lost,
        error_after=lost,
        damping=0.0,
        fallback=False,
        zeros=num_zeros(decoded_OI),
        bits=effective_bits(grid, dense_OI.shape[1]),
        seconds=0.0,
    )
    return Treated({name: quantized}, [report])


def check_still_pruned(model: PreTrainedModel, spec: PruneSpec) -> None:
    """Raises: DataError naming the layers that a training in between has filled again."""
    filled = []
    for block, module in blocks_of(model).items():
        for name, layer in prunable_layers(module).items():
            weight = weight_OI(layer)
            if spec.pattern != "unstructured":
                whole = valid_groups(weight, spec.pattern) == 1.0
            else:
                whole = num_zeros(weight) >= (spec.sparsity - 1 / weight.shape[1] - LOST_ZEROS) * weight.numel()
            if not whole:
                filled.append(f"{block}.{name}")
    if filled:
        raise DataError(
            f"{len(filled)} layers are no longer {spec.pattern} at {spec.sparsity:g}: {', '.join(filled[:5])}; recovery "
            "must keep zeros (train.keep_zeros)"
        )


def _signature(recipe: RecipeSpec, calibration_NT: Sequence[Tensor]) -> str:
    """Of the recipe and the sequences; the model is the one the scratch folder belongs to."""
    digest = hashlib.sha256(recipe.model_dump_json().encode())
    for tokens_T in calibration_NT:
        digest.update(tokens_T.numpy().tobytes() + b"\n")
    return digest.hexdigest()
