"""A compressed model -> a folder that others load: weights, configuration, tokenizer.

The order of a job: `files.write` in the process that holds the model, `verify.verify_folder` in a fresh one,
`model_card.write_card` from what both found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from training.compress import write_compressed_tensors, write_gguf, write_safetensors, write_torchao
from training.compress.compressed import Compressed
from training.compress.sizes import expected_bytes, mean_bits, weight_files
from training.compress.verify import save_expected
from training.compress_spec import QuantizeSpec, RecipeSpec
from training.model_folder import copy_tokenizer


@dataclass(frozen=True)
class Written:
    """weight_bytes: of weight files, headers included. expected_bytes: of tensors, by the formula of `sizes`.
    effective_bits: stored bits a weight of quantised layers, scales and zero points included; of the whole model where
    nothing is quantised. model_bits: of the whole model, embeddings and headers included."""

    num_tensors: int
    num_parameters: int
    weight_bytes: int
    expected_bytes: int
    effective_bits: float
    model_bits: float


def write(folder: Path, source: Path, compressed: Compressed, recipe: RecipeSpec, scratch: Path) -> Written:
    """Fill `folder`; keep in `scratch` what verification compares with. source: the dense model's folder, for its tokenizer.

    Raises: RequestError naming the layer or the setting that the format cannot hold, and what to set instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export = recipe.export if compressed.quantized else "safetensors"
    if export == "safetensors":
        rest, num_tensors, said = _write_dense(folder, compressed)
    elif export == "compressed-tensors":
        rest, num_tensors, said = _write_packed(folder, compressed, rounds_activations(recipe.quantize))
    elif export == "torchao":
        rest, num_tensors, said = write_torchao.write(folder, compressed, rounds_activations(recipe.quantize))
    else:
        rest, num_tensors, said = write_gguf.write(folder, source, compressed, recipe.name)
    _write_configuration(folder, compressed, said)
    copy_tokenizer(source, folder)
    layers = {} if export == "safetensors" else compressed.quantized
    written = _measured(folder, compressed, layers, sum(t.nbytes for t in rest.values()), num_tensors, export)
    save_expected(scratch, compressed, recipe, written.expected_bytes)
    return written


def rounds_activations(spec: QuantizeSpec | None) -> bool:
    return spec is not None and spec.rounds_activations


def _write_dense(folder: Path, compressed: Compressed) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
    rest = write_safetensors.rest(compressed.model, set())
    return rest, write_safetensors.save(folder, rest), {}


def _write_packed(
    folder: Path, compressed: Compressed, activations: bool
) -> tuple[dict[str, Tensor], int, dict[str, Any]]:
    codes = write_compressed_tensors.tensors(compressed, activations)
    rest = write_safetensors.rest(compressed.model, set(compressed.quantized))
    said = write_compressed_tensors.quantization_config(compressed, activations)
    return rest, write_safetensors.save(folder, rest | codes), {"quantization_config": said}


def _write_configuration(folder: Path, compressed: Compressed, said: dict[str, Any]) -> None:
    """config.json of the model as it is now (a shrunk one has its own), with what the format adds."""
    model = compressed.model
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | said
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _measured(
    folder: Path, compressed: Compressed, layers: dict[str, Any], rest_bytes: int, num_tensors: int, export: str
) -> Written:
    num_parameters = sum(p.numel() for p in compressed.model.parameters())
    weight_bytes = sum(path.stat().st_size for path in weight_files(folder))
    return Written(
        num_tensors=num_tensors,
        num_parameters=num_parameters,
        weight_bytes=weight_bytes,
        expected_bytes=expected_bytes(layers, rest_bytes, export),
        effective_bits=mean_bits(layers, export) if layers else 8 * rest_bytes / num_parameters,
        model_bits=8 * weight_bytes / num_parameters,
    )
