"""The optimizers by name, their groups, their state by parameter name; and clipping by the global gradient norm."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from training.loop_spec import OptimizerSpec
from training.pretrain.adafactor import Adafactor
from training.pretrain.muon import Muon

BLOCK = re.compile(r"(?:^|\.)(?:(encoder|decoder)\.)?(?:layers|layer|h|block|blocks)\.(\d+)\.")


def make_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer of `spec.kind` over `model`'s parameters, sharded or not.

    sgd and adam add weight decay to the gradient (L2), the others apply it to the weights (decoupled).
    """
    groups, rate, betas = parameter_groups(model, spec), spec.learning_rate, (spec.beta1, spec.beta2)
    match spec.kind:
        case "sgd":
            # Not fused: torch has no sharding rule for it.
            return torch.optim.SGD(groups, lr=rate, momentum=spec.momentum, foreach=True)
        case "adam":
            return torch.optim.Adam(groups, lr=rate, betas=betas, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
        case "adafactor":
            return Adafactor(groups, rate)
        case "muon":
            return Muon(groups, rate, spec.momentum, betas)


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict[str, object]]:
    """Parameters that share weight decay, share of the rate and rule of the update; frozen ones are in no group.

    Norms and biases (fewer than two dimensions) are never decayed. The rule is the number of dimensions, not a name:
    name patterns miss `ln_1`, `norm1`, `ln_f` (transformers#35927).
    """
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    depths, deepest = depths_of(model)
    outer = embeddings | _head(model)
    groups: dict[tuple[float, float, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim >= 2 and (spec.decay_embeddings or parameter not in embeddings)
        ratio = spec.layer_rate_decay ** (deepest - depths[name])
        orthogonal = spec.kind == "muon" and parameter.ndim == 2 and parameter not in outer
        groups.setdefault((spec.weight_decay * decayed, ratio, orthogonal), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "rate_ratio": ratio}
        | ({"orthogonal": orthogonal} if spec.kind == "muon" else {})
        for (decay, ratio, orthogonal), parameters in groups.items()
    ]


def _head(model: nn.Module) -> set[Tensor]:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    return {head.weight} if isinstance(head, nn.Linear) else set()


def depths_of(model: nn.Module) -> tuple[dict[str, int], int]:
    """Depth of each parameter and the greatest depth: embeddings 0, blocks from 1 up, a decoder's above the encoder's,
    then the head and the last norm."""
    places = {name: BLOCK.search(name) for name, _ in model.named_parameters()}
    blocks = {name: (place[1] == "decoder", int(place[2])) for name, place in places.items() if place}
    num_encoder = max((i + 1 for is_decoder, i in blocks.values() if not is_decoder), default=0)
    depths = {name: 1 + i + num_encoder * is_decoder for name, (is_decoder, i) in blocks.items()}
    deepest = max(depths.values(), default=0) + 1
    embedded = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if name not in depths:
            depths[name] = 0 if parameter in embedded or "embeddings" in name else deepest
    return depths, deepest


def optimizer_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The live state of one parameter; made, as it is before the first step, if it does not exist yet.

    So a fresh run has room to load a checkpoint into.
    """
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state.update(_initial_state(optimizer, parameter))
    return state


def _initial_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    if isinstance(optimizer, Adafactor | Muon):
        return optimizer.initial_state(parameter)
    zeros = torch.zeros_like(parameter.detach())
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": zeros} if optimizer.defaults["momentum"] else {}
    # Fused kernels read the number of steps on the device of the parameter.
    return {"step": torch.zeros((), device=parameter.device), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_ratio"]


def scale_gradients(module: nn.Module, factor: float) -> None:
    if factor != 1.0:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def take_gradients(module: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Gradients by parameter; the module has none afterwards. Those already summed over ranks must be put aside before another
    backward pass: DDP sums whatever it finds, so they would count once for each rank."""
    found = {p: p.grad for p in module.parameters() if p.grad is not None}
    for parameter in found:
        parameter.grad = None
    return found


def add_gradients(*others: dict[nn.Parameter, Tensor]) -> None:
    """Add gradients that were put aside to those that there are."""
    for gradients in others:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def clip_gradients(
    module: nn.Module, clip_norm: float, stages: dist.ProcessGroup | None = None, copies: Sequence[nn.Parameter] = ()
) -> float:
    """Scale gradients down to `clip_norm` and return their L2 norm over all parameters and ranks before that.

    torch refuses to put gradients of different meshes (or of none) into one norm, so each mesh has its own and the
    squares are added; `stages` are the ranks that hold other parameters of the same model, `copies` the parameters of this
    one that another stage counts.
    A non-finite norm leaves the gradients alone; the caller decides.
    """
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.grad is not None:
            mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
            groups.setdefault(mesh, []).append(parameter)
    held_twice = {id(parameter) for parameter in copies}
    counted = [[p for p in parameters if id(p) not in held_twice] for parameters in groups.values()]
    norms = [_norm_of(parameters) for parameters in counted if parameters]
    total = norms[0] if len(norms) == 1 and stages is None else _root_of_squares(norms, stages)
    if torch.isfinite(total):
        for parameters in groups.values():
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, total)
    return float(total)


def _norm_of(parameters: list[nn.Parameter]) -> Tensor:
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _root_of_squares(norms: list[Tensor], stages: dist.ProcessGroup | None) -> Tensor:
    total = torch.stack(norms).square().sum()
    if stages is not None:
        dist.all_reduce(total, group=stages)
    return total.sqrt()
