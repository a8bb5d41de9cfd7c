"""Training with rounded weights: torchao's linear layers round in the forward pass, the dense model's answers teach.

Gradients pass rounding as if it were not there, so weights move to where rounding costs little. Only matrices of blocks
train; zeros stay zeros; the rest of the model keeps every bit. Source: torchao 0.18, quantization/qat.

Shapes: B sequences, T tokens, V vocabulary; O outputs, I inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spark_jobs.errors import RequestError, TrainingError
from training.compress.blocks import batches_of, blocks_of
from training.compress.layers import prunable_layers
from training.compress.quantized import Grid
from training.compress_spec import QuantizeSpec
from training.distill.divergence import sum_divergence

RELATIVE_STEP = 0.003  # first step of Adam, as a share of a matrix's root mean square; falls to 0 in a line
CODE_TYPES: dict[int, torch.dtype] = {bits: getattr(torch, f"int{bits}") for bits in (2, 3, 4, 8)}


def train_rounded(
    model: PreTrainedModel, calibration_NT: Sequence[Tensor], spec: QuantizeSpec, seed: int = 0
) -> list[float]:
    """Move the weights of `model` in place, and leave its modules as they were: what is left to do is to round them.

    calibration_NT: 1-D int64 each. Returns the mean KL(dense || rounded) a token, in nats, of each step's batch before the step.
    Raises: RequestError for zero points, or naming a layer, that torchao cannot round in training; TrainingError if a loss is not finite.
    """
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    trained = prepare(model, Grid(spec.bits, spec.group_size, spec.symmetric))
    zeros = {name: layer.weight == 0 for name, layer in trained.items()}
    optimizer = torch.optim.Adam([{"params": [layer.weight], "lr": _first_step(layer)} for layer in trained.values()])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / spec.qat_steps)
    losses: list[float] = []
    for batch in _batches(calibration_NT, spec.qat_steps, seed):
        loss = _divergence(model, dense, torch.stack([calibration_NT[i] for i in batch]))
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"quantize.method qat: the loss of step {len(losses)} is {float(loss)}; use gptq or more bits"
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for name, layer in trained.items():
                layer.weight.masked_fill_(zeros[name], 0)
        losses.append(float(loss.detach()))
    restore(model, trained)
    return losses


def prepare(model: PreTrainedModel, grid: Grid) -> dict[str, nn.Linear]:
    """Put torchao's rounding layers in place of the blocks' matrices; they alone are trained. By name in the model."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    if not grid.symmetric:  # 0.18 casts zero points meant as numbers to integers: they are lost
        raise RequestError("quantize.method qat has no zero points (torchao 0.18): set quantize.symmetric true")
    layers = {
        f"{block}.{name}": layer
        for block, module in blocks_of(model).items()
        for name, layer in prunable_layers(module).items()
    }
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise RequestError(
                f"quantize.method qat trains nn.Linear, {name} is {type(layer).__name__}: set it to gptq"
            )
    grouped = {"group_size": grid.group_size} if grid.group_size else {"granularity": "per_channel"}
    rounding = IntxFakeQuantizeConfig(CODE_TYPES[grid.bits], is_symmetric=True, **grouped)
    quantize_(model, QATConfig(weight_config=rounding, step="prepare"), filter_fn=lambda module, name: name in layers)
    model.requires_grad_(False)
    prepared: dict[str, nn.Linear] = {name: model.get_submodule(name) for name in layers}
    for layer in prepared.values():
        layer.weight.requires_grad_(True)
    return prepared


def restore(model: PreTrainedModel, prepared: dict[str, nn.Linear]) -> None:
    """Plain linear layers around the trained weights."""
    for name, layer in prepared.items():
        model.set_submodule(name, layer.to_linear())  # type: ignore[operator]
    model.requires_grad_(True)


def _first_step(layer: nn.Linear) -> float:
    return RELATIVE_STEP * float(layer.weight.detach().square().mean().sqrt())


def _divergence(model: PreTrainedModel, dense: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """Mean KL(dense || model) a token."""
    with torch.no_grad():
        told_BTV = dense(input_ids=tokens_BT, use_cache=False).logits
    answered_BTV = model(input_ids=tokens_BT, use_cache=False).logits
    return sum_divergence(answered_BTV, told_BTV, tokens_BT, 1.0) / tokens_BT.numel()


def _batches(calibration_NT: Sequence[Tensor], num_steps: int, seed: int) -> Iterator[list[int]]:
    """Numbers of equally long sequences, all of them once before any twice, in an order of the seed."""
    batches, generator = batches_of(list(calibration_NT)), torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(num_steps):
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        yield batches[order.pop()]
