"""Bits shared out among layers: more where a model's answers depend on them, a given number on average.

`sensitivity` is what its answers change by with one layer rounded; `assign` chooses as if those changes added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spark_jobs.errors import RequestError
from training.compress.blocks import batches_of, blocks_of
from training.compress.layers import prunable_layers, set_weight, weight_OI
from training.compress.quantize_block import grid_of
from training.compress.rounding import round_to_grid
from training.compress_spec import QuantizeSpec
from training.distill.divergence import sum_divergence

BITS = (3, 4, 8)  # that a layer may get
MEASURED_TOKENS = 512  # a forward of so many for every layer and number of bits


@torch.no_grad()
def sensitivity(
    model: PreTrainedModel, calibration_NT: Sequence[Tensor], spec: QuantizeSpec
) -> dict[str, dict[int, float]]:
    """KL(model || model with one layer rounded to nearest) of the next token, in nats a token, by layer and bits.

    calibration_NT: 1-D int64 each; the first ones are used, MEASURED_TOKENS together and at least one. The model is as it
    was afterwards.
    """
    batches_BT = _measured(calibration_NT)
    dense_BTV = [model(input_ids=tokens_BT).logits for tokens_BT in batches_BT]
    lost: dict[str, dict[int, float]] = {}
    for block, module in blocks_of(model).items():
        for name, layer in prunable_layers(module).items():
            dense_OI, mine = weight_OI(layer), lost.setdefault(f"{block}.{name}", {})
            for bits in BITS:
                set_weight(layer, round_to_grid(dense_OI, grid_of(spec, bits), mask_OI=dense_OI == 0).weight())
                mine[bits] = _divergence(model, batches_BT, dense_BTV)
            set_weight(layer, dense_OI)
    return lost


def _measured(calibration_NT: Sequence[Tensor]) -> list[Tensor]:
    total = 0
    used: list[Tensor] = []
    for tokens_T in calibration_NT:
        if used and total + len(tokens_T) > MEASURED_TOKENS:
            break
        used.append(tokens_T)
        total += len(tokens_T)
    return [torch.stack([used[i] for i in rows]) for rows in batches_of(used)]


def _divergence(model: PreTrainedModel, batches_BT: list[Tensor], dense_BTV: list[Tensor]) -> float:
    total = sum(
        float(sum_divergence(model(input_ids=tokens_BT).logits, wanted_BTV, torch.zeros_like(tokens_BT), 1.0))
        for tokens_BT, wanted_BTV in zip(batches_BT, dense_BTV, strict=True)
    )
    return total / sum(tokens_BT.numel() for tokens_BT in batches_BT)


def assign(
    sensitivity: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], mean_bits: float
) -> dict[str, int]:
    """Bits of each layer; their mean, weighted by `sizes` (weights of a layer), is at most `mean_bits`.

    From the fewest bits on, the step that saves most loss for its bits is taken, until none fits: what is lost exceeds the
    least possible by no more than the one step that did not fit would have saved. Where one number of bits for all layers
    loses less, it is taken.
    Raises: RequestError if even the fewest bits are more than `mean_bits`.
    """
    budget = mean_bits * sum(sizes.values())
    lowest = {name: min(lost) for name, lost in sensitivity.items()}
    if _cost(lowest, sizes) > budget:
        raise RequestError(
            f"quantize.mixed_bits {mean_bits:g} cannot be met: with the fewest bits for every layer the mean is "
            f"{_cost(lowest, sizes) / sum(sizes.values()):g}; raise it"
        )
    choices = [_greedy(sensitivity, sizes, budget, lowest)]
    for bits in sorted(set.intersection(*(set(lost) for lost in sensitivity.values()))):
        if bits * sum(sizes.values()) <= budget:
            choices.append(dict.fromkeys(sensitivity, bits))
    return min(choices, key=lambda chosen: sum(sensitivity[name][bits] for name, bits in chosen.items()))


def _greedy(
    sensitivity: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], budget: float, lowest: dict[str, int]
) -> dict[str, int]:
    chosen, left = dict(lowest), budget - _cost(lowest, sizes)
    while True:
        steps = [
            (saved / (more * sizes[name]), name, bits)
            for name, bits, more, saved in _steps(sensitivity, chosen)
            if saved > 0 and more * sizes[name] <= left
        ]
        if not steps:
            return chosen
        _, name, bits = max(steps, key=lambda step: step[0])
        left -= (bits - chosen[name]) * sizes[name]
        chosen[name] = bits


def _steps(
    sensitivity: Mapping[str, Mapping[int, float]], chosen: dict[str, int]
) -> Iterator[tuple[str, int, int, float]]:
    """(layer, its bits after the step, bits more, loss saved)."""
    for name, lost in sensitivity.items():
        for bits in lost:
            if bits > chosen[name]:
                yield name, bits, bits - chosen[name], lost[chosen[name]] - lost[bits]


def _cost(chosen: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    return float(sum(bits * sizes[name] for name, bits in chosen.items()))
