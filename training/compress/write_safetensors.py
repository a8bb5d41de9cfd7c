"""A model as numbers: what a pruned, shrunk or rounded model is written as where no packed format is wanted.

Zeros are stored like any other number: a pruned model's file is as large as the dense one's. What it saves is what a
later quantisation, a compressed transfer or a sparse kernel makes of it.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from training.compress.lossless import narrowest

WEIGHTS = "model.safetensors"


def rest(model: PreTrainedModel, without: set[str]) -> dict[str, Tensor]:
    """Parameters and kept buffers but the weights of modules `without`, each tied tensor once, in the narrowest type that
    holds it exactly."""
    parameters = dict(model.named_parameters())
    kept = {name for name, _ in model.named_buffers()} & set(model.state_dict())
    tensors = parameters | {name: value for name, value in model.named_buffers() if name in kept}
    return {
        name: narrowest(value.detach()).contiguous()
        for name, value in tensors.items()
        if not (name.endswith(".weight") and name.removesuffix(".weight") in without)
    }


def save(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> int:
    """Write the one weight file. Returns the number of tensors."""
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"} | (metadata or {}))
    return len(tensors)
