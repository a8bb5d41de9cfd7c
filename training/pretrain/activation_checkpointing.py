"""Activation checkpointing: backward computes blocks again instead of keeping what they computed.

The hook of `transformers` is used, not torch's `checkpoint_wrapper`: a wrapper would put `_checkpoint_wrapped_module`
into every parameter's name, and names must be those of the published model.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

# Kept by `selective`: results of matrix products and attention, where the time goes. Norms, rotations, activations and
# residuals are computed again; they are most of the memory and little of the time.
KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


def checkpoint_activations(model: PreTrainedModel, mode: Literal["none", "full", "selective"]) -> None:
    """Apply before sharding, so that FSDP's hooks stay outside what is computed again."""
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, KEPT)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
