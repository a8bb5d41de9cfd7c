"""A smaller model of the Llama family out of a larger one: rows and columns of all coupled tensors, and a configuration.

Any order of what is kept computes the same; leaving out units that are 0 everywhere changes nothing.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from spark_jobs.errors import RequestError

FAMILY = ("llama", "mistral", "qwen2")  # pre-norm, RMS norms whose eps nothing else uses, gated feed-forward layers
BLOCK = re.compile(r"^(.*\blayers)\.(\d+)\.(.*)$")

# What each dimension of a tensor runs over, by the module's name; a bias has the first.
DIMENSIONS: dict[str, tuple[str, ...]] = {
    "embed_tokens": ("vocabulary", "hidden"),
    "lm_head": ("vocabulary", "hidden"),
    "norm": ("hidden",),
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
    "q_proj": ("query", "hidden"),
    "k_proj": ("key", "hidden"),
    "v_proj": ("key", "hidden"),
    "o_proj": ("hidden", "query"),
    "gate_proj": ("neuron", "hidden"),
    "up_proj": ("neuron", "hidden"),
    "down_proj": ("hidden", "neuron"),
}


@dataclass(frozen=True)
class KeptBlock:
    """index: in the larger model. groups: KV heads, each with its query heads. neurons: of the feed-forward layer."""

    index: int
    groups: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """What stays, in the order in which it will stand. All blocks keep as many groups, and as many neurons."""

    hidden: tuple[int, ...]
    blocks: tuple[KeptBlock, ...]


def check_family(model: PreTrainedModel) -> None:
    """Raises: RequestError naming the model's kind, or a tensor of it that no rule here cuts."""
    kind = model.config.model_type
    if kind not in FAMILY:
        raise RequestError(
            f"shrink cuts causal models of {', '.join(FAMILY)}; this one is {kind}: leave shrink out of the recipe"
        )
    strange = [name for name in model.state_dict() if name.split(".")[-2] not in DIMENSIONS]
    if strange:
        raise RequestError(
            f"shrink knows no rule for {strange[0]} of {type(model).__name__}: it cuts causal models of {', '.join(FAMILY)}"
        )


def slice_model(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A new model of the same class, dtype and device, with what is kept of `model`, which stays as it is.

    A norm divides by the root of the mean square over hidden units; with fewer of them the mean is larger for the same
    sum, so weights of norms grow by sqrt(all / kept), and eps by all / kept.
    """
    config = sliced_config(model.config, kept)
    with torch.random.fork_rng(devices=[]):
        smaller = type(model)(config)
    smaller.load_state_dict(_sliced_state(model, kept))
    smaller.tie_weights()
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.to(device=model.device, dtype=model.dtype).eval()


def sliced_config(config: PreTrainedConfig, kept: Kept) -> PreTrainedConfig:
    """Everything that follows from sizes, spelt out: transformers would derive another head_dim from fewer heads."""
    block = kept.blocks[0]
    per_group = config.num_attention_heads // config.num_key_value_heads
    changed = {
        "hidden_size": len(kept.hidden),
        "intermediate_size": len(block.neurons),
        "num_hidden_layers": len(kept.blocks),
        "num_key_value_heads": len(block.groups),
        "num_attention_heads": len(block.groups) * per_group,
        "head_dim": head_dim_of(config),
        "rms_norm_eps": config.rms_norm_eps * config.hidden_size / len(kept.hidden),
    }
    if getattr(config, "layer_types", None):
        changed["layer_types"] = [config.layer_types[block.index] for block in kept.blocks]
    smaller: PreTrainedConfig = type(config).from_dict(
        config.to_dict() | changed, attn_implementation=config._attn_implementation
    )
    return smaller


def head_dim_of(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _sliced_state(model: PreTrainedModel, kept: Kept) -> dict[str, Tensor]:
    config = model.config
    head_dim, per_group = head_dim_of(config), config.num_attention_heads // config.num_key_value_heads
    growth = math.sqrt(config.hidden_size / len(kept.hidden))
    hidden = {"hidden": list(kept.hidden)}
    places = {block.index: (place, block) for place, block in enumerate(kept.blocks)}
    state = {}
    for name, tensor in model.state_dict().items():
        found, indices = BLOCK.match(name), hidden
        if found:
            if int(found[2]) not in places:
                continue
            place, block = places[int(found[2])]
            name = f"{found[1]}.{place}.{found[3]}"
            indices = hidden | {
                "neuron": list(block.neurons),
                "key": _spread(block.groups, head_dim),
                "query": _spread(block.groups, head_dim * per_group),
            }
        cut = _cut(name, tensor, indices)
        state[name] = cut * growth if name.endswith("norm.weight") else cut
    return state


def _cut(name: str, tensor: Tensor, indices: dict[str, list[int]]) -> Tensor:
    dimensions = DIMENSIONS[name.split(".")[-2]]
    for axis, dimension in enumerate(dimensions[: tensor.ndim]):
        if dimension in indices:
            tensor = tensor.index_select(axis, torch.tensor(indices[dimension], device=tensor.device))
    return tensor


def _spread(units: tuple[int, ...], size: int) -> list[int]:
    """Rows of `units` that have `size` rows each."""
    return [unit * size + row for unit in units for row in range(size)]
