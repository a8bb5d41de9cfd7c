"""Model folders on disk: reading one of any format, and what every one of them carries."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from spark_jobs.errors import DataError
from spark_jobs.manifests import TokenizerFiles
from training.compress.already_quantized import ADAPTER, GGUF_FILE, stored_format
from training.compress.read_compressed_tensors import has_zero_points, read
from training.manifests import ModelFolder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def load_model(folder: ModelFolder) -> PreTrainedModel:
    """The model in evaluation mode: dense weights in fp32, codes as their format runs them."""
    return load_folder(Path(folder.folder()))


def load_model_with(folder: ModelFolder, tokenizer: TokenizerFiles) -> PreTrainedModel:
    """As `load_model`. Raises: DataError unless the tokenizer has as many ids as the model."""
    model = load_model(folder)
    if model.config.vocab_size != tokenizer.vocab_size:
        raise DataError(
            f"model {folder.address} has {model.config.vocab_size} token ids, tokenizer {tokenizer.address} "
            f"{tokenizer.vocab_size}: evaluate it with the tokenizer it was trained with"
        )
    return model


def load_folder(path: Path) -> PreTrainedModel:
    """By what lies in the folder. Raises: DataError naming a format that Nightmill does not write."""
    found = stored_format(path)
    if found in ("dense", ADAPTER):
        model: PreTrainedModel = model_class(path).from_pretrained(path, dtype=torch.float32)
    elif found == "compressed-tensors" and has_zero_points(path):
        model = read(path, model_class(path))
    elif found in ("compressed-tensors", "torchao"):
        model = model_class(path).from_pretrained(path)
    elif found == "gguf":
        model = model_class(path).from_pretrained(path, gguf_file=GGUF_FILE, dtype=torch.float32)
    else:
        raise DataError(f"{path} holds {found}; wanted dense, {ADAPTER}, compressed-tensors, torchao or gguf")
    if found == ADAPTER:
        from peft import PeftModel  # seconds of imports that no other model needs

        model = PeftModel.from_pretrained(model, path / ADAPTER)
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
    files = [*folder.glob("*.safetensors"), *folder.glob(GGUF_FILE)]
    return sum(path.stat().st_size for path in files)
