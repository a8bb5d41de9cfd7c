"""Structured pruning by width and depth (Minitron, arXiv 2408.11796): a smaller dense model, to be trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from spark_jobs.errors import RequestError
from training.compress.importance import Importance, measure_importance
from training.compress.slice_model import Kept, KeptBlock, check_family, slice_model
from training.compress_spec import ShrinkSpec

MULTIPLE = 8  # widths that were multiples stay so: groups of n:m patterns and of quantisation want whole ones


@dataclass(frozen=True)
class Sizes:
    """Of the smaller model. groups: KV heads, each with as many query heads as before."""

    blocks: int
    groups: int
    neurons: int
    hidden: int


def shrink(model: PreTrainedModel, calibration_NT: Sequence[Tensor], spec: ShrinkSpec) -> PreTrainedModel:
    """The smaller model; `model` stays as it is. All importance is measured at once, on the whole model.

    calibration_NT: 1-D int64 each. Raises: RequestError for a model that is not of the family or cannot have these sizes.
    """
    check_family(model)
    sizes = sizes_of(model.config, spec)
    importance = measure_importance(model, calibration_NT, model.config.num_hidden_layers - sizes.blocks)
    return slice_model(model, choose(importance, sizes))


def sizes_of(config: PreTrainedConfig, spec: ShrinkSpec) -> Sizes:
    """From the configuration alone. Neurons and hidden units are multiples of 8 where they were.

    Raises: RequestError where a share below 1 takes nothing away, or transformers would refuse the model: it wants the
    hidden size to be a multiple of the number of query heads.
    """
    per_group = config.num_attention_heads // config.num_key_value_heads
    groups = _share_of("heads", spec.heads, config.num_key_value_heads, 1, "key-value groups")
    num_heads = groups * per_group
    unit = math.lcm(math.gcd(config.hidden_size, MULTIPLE), num_heads)
    if spec.hidden == 1.0 and config.hidden_size % num_heads:
        raise RequestError(
            f"shrink.heads {spec.heads:g} leaves {num_heads} query heads, which do not divide the hidden size "
            f"{config.hidden_size}, as transformers wants: keep another number of the {config.num_key_value_heads} "
            "groups, or set shrink.hidden below 1"
        )
    neurons = math.gcd(config.intermediate_size, MULTIPLE)
    return Sizes(
        blocks=_share_of("blocks", spec.blocks, config.num_hidden_layers, 1, "decoder blocks"),
        groups=groups,
        neurons=_share_of("neurons", spec.neurons, config.intermediate_size, neurons, "neurons"),
        hidden=_share_of("hidden", spec.hidden, config.hidden_size, unit, "hidden units"),
    )


def _share_of(name: str, share: float, count: int, unit: int, what: str) -> int:
    """The multiple of `unit` nearest to `share * count`, of at least one unit."""
    if share == 1.0:
        return count
    kept = max(1, math.floor(share * count / unit + 0.5)) * unit
    if kept >= count:
        raise RequestError(
            f"shrink.{name} {share:g} of {count} {what} in steps of {unit} keeps all: lower it, or leave it at 1"
        )
    return kept


def choose(importance: Importance, sizes: Sizes) -> Kept:
    """The most important units of each kind, in the order in which they were; the least important run of blocks goes."""
    num_blocks = len(importance.neurons)
    first = min(range(len(importance.runs)), key=importance.runs.__getitem__, default=0)
    gone = range(first, first + num_blocks - sizes.blocks)
    blocks = tuple(
        KeptBlock(i, _highest(importance.groups[i], sizes.groups), _highest(importance.neurons[i], sizes.neurons))
        for i in range(num_blocks)
        if i not in gone
    )
    return Kept(_highest(importance.hidden, sizes.hidden), blocks)


def _highest(scores: Tensor, count: int) -> tuple[int, ...]:
    """Numbers of the `count` highest, rising; of equal ones the first."""
    return tuple(sorted(scores.argsort(descending=True, stable=True)[:count].tolist()))
