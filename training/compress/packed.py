"""Packed models on disk: codes and scales in safetensors, and a loader that rebuilds a `transformers` model.

    config.json, generation_config.json, tokenizer files     as in the dense folder
    packed.safetensors     `<layer>.weight.codes` uint8, `<layer>.weight.scales` fp16, other tensors as they were
    quantization.json      format, bits, group size, a report row a layer

The weight file is not named model.safetensors: `from_pretrained` must fail here, not make up missing weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from spark_jobs.errors import DataError
from training.compress.quantize import dequantize, pack, unpack

FORMAT = "nightmill-packed-1"
WEIGHTS, FACTS = "packed.safetensors", "quantization.json"
CODES, SCALES = ".codes", ".scales"


def save_packed(
    folder: Path, layers: dict[str, tuple[Tensor, Tensor]], rest: dict[str, Tensor], bits: int, facts: dict[str, Any]
) -> int:
    """Write codes and scales of `layers`, and `rest` unchanged. Returns the number of tensors."""
    tensors = {name: value.contiguous() for name, value in rest.items()}
    for name, (codes_OI, scales_OG) in layers.items():
        tensors[name + CODES] = pack(codes_OI, bits).contiguous()
        tensors[name + SCALES] = scales_OG.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps({"format": FORMAT, "bits": bits} | facts, indent=1, sort_keys=True)
    (folder / FACTS).write_text(text + "\n")
    return len(tensors)


def load_packed(folder: Path) -> PreTrainedModel:
    """Rebuild the model with dequantised fp32 weights; a tied head follows the embedding.

    Raises: DataError if the format is another one, or tensors are missing or left over.
    """
    facts = json.loads((folder / FACTS).read_text())
    if facts["format"] != FORMAT:
        raise DataError(f"{folder / FACTS}: format {facts['format']!r}, this version reads {FORMAT!r}; compress again")
    stored = load_file(folder / WEIGHTS)
    weights = {name: value for name, value in stored.items() if not name.endswith((CODES, SCALES))}
    for name in (n.removesuffix(CODES) for n in stored if n.endswith(CODES)):
        weights[name] = dequantize(unpack(stored[name + CODES], facts["bits"]), stored[name + SCALES])
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    expected = dict(model.named_parameters())  # a tied tensor appears once
    if set(expected) != set(weights):
        raise DataError(
            f"{folder / WEIGHTS}: tensors differ: {sorted(set(expected) ^ set(weights))[:5]}; compress again"
        )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(weights[name])
    return model.eval()
