"""Model folders on disk: reading one of any scheme, and what every one of them carries."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from training.compress.packed import load_packed
from training.manifests import ModelFolder

ADAPTER = "adapter"  # scheme of a folder whose trained part lies beside the base, and the name of its sub-folder
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def load_model(folder: ModelFolder) -> PreTrainedModel:
    """The model in fp32, in evaluation mode; packed weights are rebuilt from their codes."""
    return load_folder(Path(folder.folder()), folder.scheme)


def load_folder(path: Path, scheme: str) -> PreTrainedModel:
    if scheme == "dense":
        model: PreTrainedModel = model_class(path).from_pretrained(path, dtype=torch.float32)
    elif scheme == ADAPTER:
        from peft import PeftModel  # seconds of imports that no other model needs

        model = model_class(path).from_pretrained(path, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, path / ADAPTER)
    else:
        model = load_packed(path)
    return model.eval()


def model_class(folder: Path) -> Any:
    """The class of `transformers` that the folder was saved from: causal, masked or encoder-decoder.

    An Auto class would load a masked model as a causal one, which then sees the tokens it is asked for.
    """
    return getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def weight_bytes(folder: Path) -> int:
    """Bytes of weight files on disk, headers included: what a download costs."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))
