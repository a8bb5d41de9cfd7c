"""The model as `transformers` knows it: a Llama-shaped causal language model by spec, new or from a champion."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from spark_jobs.errors import RequestError, TrainingError
from spark_jobs.manifests import TokenizerFiles
from training.manifests import ModelFolder
from training.specs import ModelSpec

# What must agree before a champion's weights can be trained on.
ARCHITECTURE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "tie_word_embeddings", "max_position_embeddings",
)  # fmt: skip


def model_config(spec: ModelSpec, tokenizer: TokenizerFiles, seq_len: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        max_position_embeddings=seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=spec.tie_embeddings,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
        attn_implementation="sdpa",
        use_cache=False,
    )


def new_model(config: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Initial weights from `seed` alone: every rank builds the same model, whatever the number of ranks."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def check_architecture(config: LlamaConfig, champion: ModelFolder) -> None:
    """Raises: RequestError naming every difference between the champion's configuration and the one asked for."""
    found = LlamaConfig.from_pretrained(champion.folder())
    different = [
        f"{name} {getattr(found, name)} (spec asks {getattr(config, name)})"
        for name in ARCHITECTURE
        if getattr(found, name) != getattr(config, name)
    ]
    if found.rope_parameters["rope_theta"] != config.rope_parameters["rope_theta"]:
        different.append(f"rope_theta {found.rope_parameters['rope_theta']}")
    if different:
        raise RequestError(
            f"champion {champion.address} has another shape: {', '.join(different)}; "
            "set train.model back to the champion's, or start a workspace of its own for the new shape"
        )


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` in place from a safetensors file; a tied head follows the embedding.

    Raises: TrainingError if a tensor is missing, left over or of another shape.
    """
    weights = load_file(path)
    expected = dict(model.named_parameters())  # a tied tensor appears once
    if set(weights) != set(expected):
        wrong = sorted(set(weights) ^ set(expected))[:5]
        raise TrainingError(f"{path}: tensors differ from the model's: {', '.join(wrong)}; check config.json beside it")
    with torch.no_grad():
        for name, parameter in expected.items():
            if weights[name].shape != parameter.shape:
                raise TrainingError(
                    f"{path}: {name} is {tuple(weights[name].shape)}, the model wants {tuple(parameter.shape)}"
                )
            parameter.copy_(weights[name])
