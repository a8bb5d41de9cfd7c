"""The model a fine-tuning starts from: a folder's weights with the head of a task, and the part that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from spark_jobs.errors import DataError, RequestError
from training.finetune.methods import quantization_of
from training.finetune.task import Task
from training.finetune_spec import FinetuneSpec
from training.manifests import ModelFolder
from training.pretrain.model import dropouts_of


def load_tokenizer(base: ModelFolder) -> PreTrainedTokenizerBase:
    """Raises: DataError if there is no padding token: batches could not be made."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base.folder())
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise DataError(f"model {base.address}: its tokenizer has neither a padding nor an end token; add one")
        tokenizer.pad_token = tokenizer.eos_token  # masked by place, never by id: the end token is still learned
    return tokenizer


def load_base(base: ModelFolder, task: Task, spec: FinetuneSpec) -> PreTrainedModel:
    """The base with the task's head; new weights of the head from `spec.seed` alone, so every rank has the same.

    Raises: RequestError if the architecture has no such head.
    """
    if base.scheme != "dense":
        raise RequestError(f"model {base.address} is {base.scheme}: fine-tune the dense model, compress the result")
    folder = Path(base.folder())
    config = AutoConfig.from_pretrained(folder, **task.config_fields())
    if spec.dropout is not None:
        for name in dropouts_of(config):
            setattr(config, name, spec.dropout)
    if type(config) not in task.auto_class._model_mapping:
        raise RequestError(
            f"task.kind {spec.task.kind}: transformers has no such head for a {config.model_type}; choose another base"
        )
    torch.manual_seed(spec.seed)
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "attn_implementation": "sdpa"}
    quantization = quantization_of(spec.method)
    if quantization is not None:
        options["quantization_config"] = quantization
    logging.set_verbosity_error()  # that the head is new is what was asked for, not worth a table
    logging.disable_progress_bar()
    model: PreTrainedModel = task.auto_class.from_pretrained(folder, **options)
    model.config.use_cache = False
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = task.pad_id
    return model.train()
