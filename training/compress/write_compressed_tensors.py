"""Codes -> a folder in the compressed-tensors format, which plain `from_pretrained` and vLLM load. Nothing is rounded again.

    <layer>.weight_packed       int32, the codes + 2^(bits-1) as a stream of bits along the inputs
    <layer>.weight_scale        fp16 (O, G); loaders cast it to the model's dtype
    <layer>.weight_zero_point   int32, packed along the outputs, where the grid is not symmetric
    <layer>.weight_shape        int64 (2,)
    everything else             as it was, in the narrowest type that holds it exactly

With 8-bit activations the weights are int8 as they are (`weight`) and activations are rounded a token at a time when
the model runs. Source: compressed-tensors 0.20, compressors/pack_quantized and naive_quantized.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark_jobs.errors import RequestError
from training.compress.compressed import Compressed
from training.compress.quantized import Grid, Quantized

ACTIVATIONS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def tensors(compressed: Compressed, eight_bit_activations: bool) -> dict[str, Tensor]:
    """Tensors of the quantised layers by their name in the file.

    Raises: RequestError naming the layer that the format cannot hold.
    """
    check(compressed)
    stored: dict[str, Tensor] = {}
    for name, quantized in compressed.quantized.items():
        parts = _plain(quantized) if eight_bit_activations else _packed(quantized)
        stored |= {f"{name}.{part}": value.contiguous() for part, value in parts.items()}
    return stored


def _packed(quantized: Quantized) -> dict[str, Tensor]:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # seconds of imports

    bits = quantized.grid.bits
    parts = {
        "weight_packed": pack_to_int32(quantized.codes_OI, bits),
        "weight_scale": quantized.scales_OG,
        "weight_shape": torch.tensor(quantized.codes_OI.shape, dtype=torch.int64),
    }
    if quantized.zeros_OG is not None:
        parts["weight_zero_point"] = pack_to_int32(quantized.zeros_OG, bits, packed_dim=0)
    return parts


def _plain(quantized: Quantized) -> dict[str, Tensor]:
    return {"weight": quantized.codes_OI, "weight_scale": quantized.scales_OG}


def quantization_config(compressed: Compressed, eight_bit_activations: bool) -> dict[str, Any]:
    """What config.json says of the codes: a group of layers for each grid, and the linear layers left as they were."""
    layers: dict[Grid, list[str]] = defaultdict(list)
    for name, quantized in compressed.quantized.items():
        layers[quantized.grid].append(name)
    groups = {}
    for index, (grid, names) in enumerate(layers.items()):
        weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False}
        weights |= {"strategy": "group", "group_size": grid.group_size} if grid.group_size else {"strategy": "channel"}
        groups[f"group_{index}"] = {
            "targets": ["Linear"] if len(layers) == 1 else names,
            "weights": weights,
            "input_activations": ACTIVATIONS if eight_bit_activations else None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if eight_bit_activations else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in _linear_layers(compressed.model) if name not in compressed.quantized],
    }


def check(compressed: Compressed) -> None:
    """Raises: RequestError naming the layer, and what to set instead."""
    model = compressed.model
    grids = {quantized.grid for quantized in compressed.quantized.values()}
    if len(grids) > 1 and not all(grid.symmetric for grid in grids):
        raise RequestError(
            "transformers 5.24 reads zero points of one grid alone, not of mixed bits: set quantize.symmetric true, or "
            "quantize.mixed_bits 0"
        )
    if model.dtype == torch.bfloat16:
        raise RequestError("scales are float16, which a bfloat16 model cannot hold exactly: load the model in float32")
    for name, quantized in compressed.quantized.items():
        module = model.get_submodule(name)
        num_inputs = quantized.codes_OI.shape[1]
        if isinstance(module, torch.nn.Embedding):
            raise RequestError(
                f"compressed-tensors cannot share {name}'s codes with the head: set quantize.tied_head skip, "
                "or export gguf, which stores them once"
            )
        if not isinstance(module, torch.nn.Linear):
            raise RequestError(f"compressed-tensors holds no {type(module).__name__} ({name}): export safetensors")
        if num_inputs % quantized.grid.group(num_inputs):
            raise RequestError(
                f"{name} has {num_inputs} inputs, no multiple of quantize.group_size {quantized.grid.group_size}: "
                "choose a divisor, or 0 for a scale an output"
            )
        if quantized.group_I is not None and not torch.equal(
            quantized.group_I, torch.arange(num_inputs, dtype=torch.int32) // quantized.grid.group(num_inputs)
        ):
            raise RequestError(
                f"{name} has groups in order of activation, for which compressed-tensors 0.20 has no index: set "
                "quantize.static_groups true, or quantize.act_order false"
            )


def _linear_layers(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
