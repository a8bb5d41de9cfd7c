"""Bytes of a compressed model: what a formula says, what the files take, what it takes in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.compress.already_quantized import GGUF_FILE, header
from training.compress.quantized import Quantized, effective_bits

SHAPE_BYTES = 16  # compressed-tensors keeps two int64 a packed layer
BLOCK = 32  # weights of a block of GGUF, with a scale of 16 bits


def stored_bits(quantized: Quantized, export: str) -> float:
    """Bits a weight of the layer in files of the format."""
    num_inputs = quantized.codes_OI.shape[1]
    if export == "gguf":
        return quantized.grid.bits + 16 / BLOCK
    if export == "torchao":
        return 8 + 32 / num_inputs
    return effective_bits(quantized.grid, num_inputs)


def expected_bytes(layers: dict[str, Quantized], rest_bytes: int, export: str) -> int:
    """Bytes of tensors, headers left out."""
    codes = sum(stored_bits(q, export) * q.codes_OI.numel() / 8 for q in layers.values())
    shapes = SHAPE_BYTES * len(layers) if export == "compressed-tensors" else 0
    return round(codes) + shapes + rest_bytes


def mean_bits(layers: dict[str, Quantized], export: str) -> float:
    """Stored bits a weight over the quantised layers, scales and zero points included."""
    num_weights = sum(q.codes_OI.numel() for q in layers.values())
    return sum(stored_bits(q, export) * q.codes_OI.numel() for q in layers.values()) / num_weights


def weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    return found + ([folder / GGUF_FILE] if (folder / GGUF_FILE).is_file() else [])


def tensor_bytes(folder: Path) -> int:
    """Bytes of the tensors in a folder's weight files; headers, vocabulary and alignment left out."""
    if (folder / GGUF_FILE).is_file():
        from gguf import GGUFReader

        return sum(int(tensor.n_bytes) for tensor in GGUFReader(folder / GGUF_FILE).tensors)
    return sum(
        entry["data_offsets"][1] - entry["data_offsets"][0]
        for path in folder.glob("*.safetensors")
        for name, entry in header(path).items()
        if name != "__metadata__"
    )


def memory_bytes(model: torch.nn.Module) -> int:
    """Bytes of distinct storage behind parameters and buffers: a tied tensor counts once, codes as codes."""
    storages = {}
    for value in [*model.parameters(), *model.buffers()]:
        for part in _plain_tensors(value):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _plain_tensors(value: Tensor) -> list[Tensor]:
    """A tensor subclass's own tensors (torchao keeps codes and scales in one)."""
    if hasattr(value, "__tensor_flatten__"):
        return [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    return [value]
