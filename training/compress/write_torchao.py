"""8-bit codes -> a folder that `from_pretrained` loads into torchao's int8 tensors, whose products run as int8 on CPU.

    <layer>._weight_qdata   int8 (O, I), the codes
    <layer>._weight_scale   fp32 (O, 1)

With rounded activations each token's activations are rounded to 8 bits when the model runs. Source: torchao 0.18,
prototype/safetensors and quantize_/workflows/int8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spark_jobs.errors import RequestError
from training.compress import write_safetensors
from training.compress.compressed import Compressed
from training.compress.quantized import Quantized


def write(
    folder: Path, compressed: Compressed, eight_bit_activations: bool
) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
    """Returns the unquantised rest, the number of tensors, and what config.json says of the codes.

    Raises: RequestError naming the layer that torchao's int8 cannot hold.
    """
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict  # seconds of imports

    check(compressed)
    rest = write_safetensors.rest(compressed.model, set(compressed.quantized))
    layers = {
        f"{name}.weight": int8_tensor(quantized, compressed.model.dtype, eight_bit_activations)
        for name, quantized in compressed.quantized.items()
    }
    tensors, metadata = flatten_tensor_state_dict(rest | layers)
    return rest, write_safetensors.save(folder, tensors, metadata), _said(compressed, eight_bit_activations)


def int8_tensor(quantized: Quantized, dtype: torch.dtype, eight_bit_activations: bool) -> Tensor:
    """torchao's tensor around our codes; nothing is rounded again."""
    from torchao.quantization import Int8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    activations = QuantizeTensorToInt8Kwargs(granularity=PerRow()) if eight_bit_activations else None
    tensor: Tensor = Int8Tensor(
        quantized.codes_OI.contiguous(),
        quantized.scales_OG.float(),
        [1, quantized.codes_OI.shape[1]],
        dtype,
        act_quant_kwargs=activations,
    )
    return tensor


def _said(compressed: Compressed, eight_bit_activations: bool) -> dict[str, Any]:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    kind = Int8DynamicActivationInt8WeightConfig if eight_bit_activations else Int8WeightOnlyConfig
    left = [
        name
        for name, module in compressed.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in compressed.quantized
    ]
    return {"quantization_config": TorchAoConfig(kind(version=2), modules_to_not_convert=left).to_dict()}


def check(compressed: Compressed) -> None:
    for name, quantized in compressed.quantized.items():
        grid, num_inputs = quantized.grid, quantized.codes_OI.shape[1]
        module = compressed.model.get_submodule(name)
        if not isinstance(module, torch.nn.Linear):
            raise RequestError(f"torchao's int8 holds no {type(module).__name__} ({name}): export safetensors")
        if grid.bits != 8 or not grid.symmetric or grid.group(num_inputs) != num_inputs:
            raise RequestError(
                f"{name}: torchao runs symmetric 8-bit codes with a scale an output, not {grid.bits} bits in groups of "
                f"{grid.group(num_inputs)}: set quantize.bits 8, group_size 0, symmetric true, or export compressed-tensors"
            )
