"""What a training costs: FLOPs by formula, memory by shape, and the share of the device's peak that is reached.

Convention of MFU (PaLM, arXiv:2204.02311, appendix B): 6 N + 12 L H Q T FLOPs a token, N the parameters of matrix
products (a tied embedding counts, an untied input embedding does not), L layers of H heads of size Q, T tokens a
sequence. Causal attention is not halved, recomputation is not counted, padding is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

# FLOP/s of dense 16-bit matrix products, without sparsity, from the vendors' data sheets. First match counts.
PEAKS_16_BIT = {
    "A100": 312e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,  # SXM
    "H200": 989e12,
    "B200": 2.25e15,
}


def peak_flops(device_name: str) -> float | None:
    """Peak of a device by the name the driver gives it; None if it is not in the table, and then no MFU is told."""
    return next((peak for name, peak in PEAKS_16_BIT.items() if name.lower() in device_name.lower()), None)


def matmul_parameters(model: nn.Module) -> int:
    """Parameters that every token is multiplied with: all but embeddings that are only looked up."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tied = head.weight if isinstance(head, nn.Linear) else None
    looked_up = {m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is not tied}
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in looked_up)


def flops_per_token(parameters: int, num_layers: int, num_heads: int, head_size: int, seq_len: int) -> float:
    """Of forward and backward together."""
    return 6.0 * parameters + 12.0 * num_layers * num_heads * head_size * seq_len


def model_flops_per_token(model: nn.Module, seq_len: int) -> float:
    """Of a model of `transformers`. Encoder-decoders: layers of both, as if each token passed all of them."""
    config: Any = model.config
    num_layers = config.num_hidden_layers + (getattr(config, "num_decoder_layers", None) or 0)
    num_heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // num_heads
    return flops_per_token(matmul_parameters(model), num_layers, num_heads, head_size, seq_len)


def mfu(flops_a_token: float, tokens_per_s: float, peak: float) -> float:
    """Share of the peak; tokens_per_s of one device."""
    return flops_a_token * tokens_per_s / peak


def memory_bytes(num_parameters: int, settings: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of one rank for weights, gradients, optimizer state and average, sharded over `shards` ranks.

    settings: shards, optimizer (kind), hidden_parameters (matrices of blocks, of which muon keeps one moment), ema,
    gathered (parameters that forward and backward have whole at once), gathered_bytes (2 or 4 each).
    """
    shards = settings["shards"]
    hidden = settings["hidden_parameters"]
    moments = {
        "adamw": 2 * num_parameters,
        "adam": 2 * num_parameters,
        "sgd": num_parameters,
        "muon": hidden + 2 * (num_parameters - hidden),
        "adafactor": 0,  # two vectors a matrix
    }[settings["optimizer"]]
    return {
        "weights": 4 * num_parameters // shards + settings["gathered_bytes"] * settings["gathered"],
        "gradients": 4 * num_parameters // shards,
        "optimizer": 4 * moments // shards,
        "average": 4 * num_parameters // shards * settings["ema"],
    }
