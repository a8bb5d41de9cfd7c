"""The model as `transformers` knows it: any of its architectures by spec, new or from a champion."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from spark_jobs.errors import RequestError, TrainingError
from training.manifests import ModelFolder
from training.specs import ModelSpec

AUTO_CLASSES: dict[str, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "masked_lm": AutoModelForMaskedLM,
    "seq2seq_lm": AutoModelForSeq2SeqLM,
}

# What must agree before a champion's weights can be trained on.
ARCHITECTURE = (
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "tie_word_embeddings", "max_position_embeddings",
)  # fmt: skip

# What architectures call the width of the feed-forward layer.
FEED_FORWARD = ("intermediate_size", "n_inner", "d_ff", "ffn_dim")
# Dropout of heads that a language model does not have.
OTHER_DROPOUT = ("classifier_dropout", "classifier_dropout_prob", "summary_first_dropout")


class Vocabulary(Protocol):
    """How many tokens there are, and the numbers of the special ones."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...


def model_config(spec: ModelSpec, tokenizer: Vocabulary, seq_len: int) -> PreTrainedConfig:
    """Configuration of `spec.architecture`; of the spec's fields those that this architecture has, then its overrides.

    Raises: RequestError for an architecture or an override that `transformers` does not know.
    """
    if spec.architecture not in CONFIG_MAPPING_NAMES:
        near = difflib.get_close_matches(spec.architecture, CONFIG_MAPPING_NAMES, n=3)
        raise RequestError(
            f"train.model.architecture {spec.architecture!r}: not a model type of transformers; near: {', '.join(near)}"
        )
    default = AutoConfig.for_model(spec.architecture)
    fields = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "max_position_embeddings": seq_len,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "d_kv": spec.hidden_size // spec.num_heads,
        **dict.fromkeys(FEED_FORWARD, spec.intermediate_size),
        **dict.fromkeys(dropouts_of(default), spec.dropout),
    }
    known = {default.attribute_map.get(name, name): value for name, value in fields.items() if hasattr(default, name)}
    strange = [name for name in spec.overrides if not hasattr(default, name)]
    if strange:
        near = difflib.get_close_matches(strange[0], vars(default), n=3)
        raise RequestError(
            f"train.model.overrides: a {spec.architecture} has no {', '.join(strange)}; near: {', '.join(near)}"
        )
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "decoder_start_token_id": tokenizer.bos_id if default.is_encoder_decoder else None,
    }
    return AutoConfig.for_model(
        spec.architecture,
        **known | {name: value for name, value in ids.items() if value is not None},
        tie_word_embeddings=spec.tie_embeddings,
        attn_implementation="sdpa",
        use_cache=False,
        **{default.attribute_map.get(name, name): value for name, value in spec.overrides.items()},
    )


def dropouts_of(config: PreTrainedConfig) -> list[str]:
    """Names of the configuration's dropout rates: resid_pdrop, hidden_dropout_prob, dropout_rate ..."""
    return [
        name
        for name, value in vars(config).items()
        if ("dropout" in name or "pdrop" in name) and isinstance(value, int | float) and name not in OTHER_DROPOUT
    ]


def model_kind(config: PreTrainedConfig, objective: str) -> Any:
    """The class of `transformers` for this architecture and objective.

    Raises: RequestError if there is none, or packed documents cannot be told apart in it.
    """
    mapping = AUTO_CLASSES[objective]._model_mapping
    if type(config) not in mapping:
        raise RequestError(
            f"train.objective {objective}: transformers has no such model of architecture {config.model_type}; "
            "choose another of either"
        )
    kind = mapping[type(config)]
    accepted = inspect.signature(kind.forward).parameters
    if not kind._supports_sdpa or ("position_ids" not in accepted and "decoder_input_ids" not in accepted):
        raise RequestError(
            f"train.model.architecture {config.model_type}: it cannot be told where packed documents begin"
        )
    return kind


def new_model(config: PreTrainedConfig, seed: int, objective: str = "causal_lm") -> PreTrainedModel:
    """Initial weights from `seed` alone: every rank builds the same model, whatever the number of ranks.

    Raises: RequestError if the architecture cannot be trained for `objective`, or on packed sequences.
    """
    kind = model_kind(config, objective)
    torch.manual_seed(seed)
    model: PreTrainedModel = kind(config)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            raise RequestError(  # RoBERTa starts at 2, transformers#47525
                f"train.model.architecture {config.model_type}: its positions do not start at 0; choose another"
            )
    return model


def check_architecture(config: PreTrainedConfig, champion: ModelFolder) -> None:
    """Raises: RequestError naming every difference between the champion's configuration and the one asked for."""
    found = AutoConfig.from_pretrained(champion.folder())
    different = [
        f"{name} {getattr(found, name, None)} (spec asks {getattr(config, name, None)})"
        for name in ARCHITECTURE
        if getattr(found, name, None) != getattr(config, name, None)
    ]
    thetas = [(getattr(c, "rope_parameters", None) or {}).get("rope_theta") for c in (found, config)]
    if thetas[0] != thetas[1]:
        different.append(f"rope_theta {thetas[0]}")
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
