"""compressed-tensors folders with zero points -> a model in numbers.

compressed-tensors 0.20 gives packed zero points their shape only after transformers 5.24 has compared shapes, so plain
`from_pretrained` refuses such a folder; with `CompressedTensorsConfig(dequantize=True)` it loads, but multiplies codes and
scales in 16 bits. Here they are multiplied in the model's own dtype, as in memory when the folder was written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from spark_jobs.errors import DataError
from training.compress.quantized import Grid, Quantized

PACKED, SCALE, ZERO, SHAPE = (f".weight_{part}" for part in ("packed", "scale", "zero_point", "shape"))


def has_zero_points(folder: Path) -> bool:
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    return any(not group["weights"]["symmetric"] for group in said["config_groups"].values())


def read(folder: Path, model_class: Any) -> PreTrainedModel:
    """Raises: DataError if tensors are missing or left over."""
    config = AutoConfig.from_pretrained(folder)
    groups = config.quantization_config["config_groups"]
    del config.quantization_config
    model: PreTrainedModel = model_class(config).to(config.dtype)
    tensors = load_file(folder / "model.safetensors")
    layers = [name.removesuffix(PACKED) for name in tensors if name.endswith(PACKED)]
    weights = {name: value for name, value in tensors.items() if ".weight_" not in name}
    (said,) = (group["weights"] for group in groups.values())
    for name in layers:
        weights[f"{name}.weight"] = _decoded(name, tensors, said)
    missing, left = model.load_state_dict(weights, strict=False)
    tied = set(model.state_dict()) - set(dict(model.named_parameters()))
    if left or set(missing) - tied:
        raise DataError(f"{folder}: tensors differ: {sorted({*left, *missing})[:5]}; compress again")
    model.tie_weights()
    return model


def _decoded(name: str, tensors: dict[str, Tensor], said: dict[str, Any]) -> Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32  # seconds of imports

    shape = torch.Size(tensors[name + SHAPE].tolist())
    scales_OG = tensors[name + SCALE]
    grid = Grid(said["num_bits"], said.get("group_size") or 0, said["symmetric"])
    zeros_OG = unpack_from_int32(tensors[name + ZERO], grid.bits, scales_OG.shape, packed_dim=0)
    codes_OI = unpack_from_int32(tensors[name + PACKED], grid.bits, shape)
    return Quantized(grid, codes_OI, scales_OG, zeros_OG).weight()
