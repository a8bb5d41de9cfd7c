"""Round-to-nearest quantization of one weight: symmetric, one scale a group of inputs. Pure functions.

Shapes: O outputs, I inputs, G groups a row (I / group_size).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spark_jobs.errors import RequestError

BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class LayerReport:
    """What quantization did to one weight. error: ||W - W'|| / ||W|| (Frobenius). bits: stored bits a weight."""

    name: str
    num_weights: int
    error: float
    bits: float


def quantize(weight_OI: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes int8 (O, I) in [-2^(bits-1), 2^(bits-1) - 1] and scales fp16 (O, G).

    scale = max|w| / ((2^bits - 1) / 2), as compressed-tensors, torchao and llm-compressor do: the largest positive
    weight is clipped by half a step. Rounding uses the fp16 scale that is stored, so that codes and scales agree.
    A group of zeros gets scale 1.
    """
    outputs, inputs = weight_OI.shape
    grouped = weight_OI.float().reshape(outputs, inputs // group_size, group_size)
    scales_OG = (grouped.abs().amax(dim=-1) / ((2**bits - 1) / 2)).half()
    scales_OG = torch.where(scales_OG == 0, torch.ones_like(scales_OG), scales_OG)
    codes = (grouped / scales_OG.float()[..., None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.to(torch.int8).reshape(outputs, inputs), scales_OG


def dequantize(codes_OI: Tensor, scales_OG: Tensor) -> Tensor:
    """fp32 weight (O, I) from codes and scales."""
    outputs, groups = scales_OG.shape
    grouped = codes_OI.float().reshape(outputs, groups, -1) * scales_OG.float()[..., None]
    return grouped.reshape(outputs, -1)


def pack(codes_OI: Tensor, bits: int) -> Tensor:
    """uint8: int8 codes as they are (two's complement), int4 codes + 8, two a byte, the first in the low half."""
    if bits == 8:
        return codes_OI.view(torch.uint8)
    unsigned = (codes_OI + 8).to(torch.uint8)
    return unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Codes int8 (O, I), the inverse of `pack`."""
    if bits == 8:
        return packed.view(torch.int8)
    pairs = torch.stack([packed & 15, packed >> 4], dim=-1).to(torch.int8) - 8
    return pairs.reshape(packed.shape[0], -1)


def effective_bits(bits: int, group_size: int) -> float:
    """Stored bits a quantised weight: its code and its share of a 16-bit scale."""
    return bits + 16 / group_size


def check_group_size(shapes: dict[str, tuple[int, int]], group_size: int) -> None:
    """Raises: RequestError naming every layer whose inputs are no multiple of an even group size."""
    wrong = [f"{name} ({inputs} inputs)" for name, (_, inputs) in shapes.items() if inputs % group_size]
    if wrong or group_size % 2:
        raise RequestError(
            f"compress.group_size {group_size} must be even and divide the inputs of every layer; it does not fit "
            f"{', '.join(wrong) or 'two codes a byte'}: choose a divisor, or change the model's widths"
        )
