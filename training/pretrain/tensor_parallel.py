"""Tensor parallel for a Llama: which matrix is cut along which side, and the loss over a cut vocabulary.

Between the matrices every rank holds a part of the positions (sequence parallel, Korthikanti et al. 2022,
arXiv:2205.05198), so norms and residuals are cut as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

LossFunction = Callable[[Tensor, Tensor], Tensor]


def llama_plan() -> dict[str, ParallelStyle]:
    """Activations between entries are plain tensors (B, T / tp, hidden); logits are (B, T, V / tp)."""
    block: dict[str, ParallelStyle] = {
        "input_layernorm": SequenceParallel(),
        "self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": Shard(1)},
            desired_input_kwarg_layouts={"hidden_states": Replicate()},
        ),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(output_layouts=Shard(1)),
        "post_attention_layernorm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=Shard(1)),
    }
    return {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        **{f"model.layers.*.{name}": style for name, style in block.items()},
        "model.norm": SequenceParallel(),
        "lm_head": ColwiseParallel(input_layouts=Shard(1)),
    }


def cut_matrices(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a whole Llama, or a pipeline stage of one, over `mesh`; a tied head stays tied.

    Embedding and head are both cut along the vocabulary, so a tie survives; but each is cut for itself, and must be
    tied again.
    """
    names = {name for name, _ in model.named_modules()}
    plan = {name: style for name, style in llama_plan().items() if "*" in name or name in names}
    embedding, head = _module(model, "model.embed_tokens"), _module(model, "lm_head")
    tied = embedding is not None and head is not None and embedding.weight is head.weight
    parallelize_module(model, mesh, plan)
    if tied and embedding is not None and head is not None:
        head.weight = embedding.weight


def _module(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def over_cut_vocabulary(loss: LossFunction, mesh: DeviceMesh) -> LossFunction:
    """`loss` of logits of which this rank has (B, T, V / tp); call it, and its backward, inside `loss_context`.

    Only the maximum, the sum of exponentials and the target's logit cross ranks, never logits.
    """

    def of_part(logits: Tensor, targets: Tensor) -> Tensor:
        whole = DTensor.from_local(logits, mesh, [Shard(logits.ndim - 1)], run_check=False)
        value = loss(whole, targets)
        return value.to_local() if isinstance(value, DTensor) else value

    return of_part


def loss_context(mesh: DeviceMesh | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if mesh is None else loss_parallel()
