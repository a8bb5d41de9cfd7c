"""How a model is spread over ranks. One order: pipeline split, activation checkpointing, tensor
parallel, compilation, FSDP2 or DDP."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from training.parallel_spec import ParallelSpec
from training.pretrain.activation_checkpointing import checkpoint_activations
from training.pretrain.chunked_loss import LossHead
from training.pretrain.compiled_blocks import compile_blocks
from training.pretrain.context_parallel import use_context_parallel
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Mesh
from training.pretrain.objectives import Inputs
from training.pretrain.pipeline import PipelinedModel
from training.pretrain.tensor_parallel import LossFunction, cut_matrices, loss_context, over_cut_vocabulary

# Below this many parameters a rank keeps the gathered weights between forward and backward: it saves one all-gather
# a block, and costs at most 200 MB.
RESHARD_FROM = 50_000_000
OutputLoss = Callable[[Any, Any], Tensor]  # what the model answered and was asked -> loss summed over targets
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ParallelModel(Protocol):
    """What the trainer sees of a model on many ranks."""

    module: nn.Module  # this rank's parameters, by the names they have in the whole model
    mesh: Mesh
    copies: Sequence[nn.Parameter]  # those of `module` that another pipeline stage has too, and counts

    def forward_backward(self, batches: Sequence[Inputs], divisor: float) -> float:
        """Accumulate gradients of a step's micro-batches, summed over ranks when it returns.

        Losses are summed over targets and divided by `divisor`: the step's targets over all ranks, or less where the loss
        is scaled. Returns this rank's share of the sum.
        """
        ...


def parallelize(
    model: PreTrainedModel, mesh: Mesh, spec: ParallelSpec, precision: str = "fp32",
    loss: LossFunction = sum_cross_entropy, head: LossHead | None = None, reshard_from: int = RESHARD_FROM,
    output_loss: OutputLoss | None = None,
) -> ParallelModel:  # fmt: skip
    """Spread `model`, which every rank has built whole with the same weights. `model` itself is used up.

    Weights stay in their own dtype; bf16 or fp16 is what forward and backward compute in, reductions are fp32. `head`, if
    there is one, is part of the model and answers with the loss in the place of logits. `output_loss` is for models whose
    loss is not one of logits and targets alone; it wants whole models. A model of `reshard_from`
    parameters or more is sharded block by block.
    """
    model.to(mesh.ranks.device)
    if mesh.sequence is not None:
        use_context_parallel(model, mesh.sequence)
    checkpoint_activations(model, spec.activation_checkpointing)
    if mesh.tp is not None:
        loss = over_cut_vocabulary(loss, mesh.tp)
    whole_loss = output_loss or on_logits(loss, mesh.ranks.device)
    if spec.strategy == "ddp":
        if spec.compile:
            compile_blocks(blocks_of(model))
        return WholeModel(model, copy_model(model), mesh, whole_loss, head)
    reshard = sum(p.numel() for p in model.parameters()) >= reshard_from
    policies = _policies(mesh, spec, precision)

    def shard(part: nn.Module) -> None:
        if mesh.tp is not None:
            cut_matrices(part, mesh.tp)
        if spec.compile:
            compile_blocks(blocks_of(part))
        shard_module(part, mesh, policies, reshard)

    if mesh.degrees.pp > 1:
        return PipelinedModel(model, mesh, spec, loss, shard)
    shard(model)
    return WholeModel(model, model, mesh, whole_loss, head)


def on_logits(loss: LossFunction, device: torch.device) -> OutputLoss:
    return lambda output, batch: loss(output.logits, batch.targets_BS.to(device))


class WholeModel:
    """All blocks on every rank."""

    def __init__(
        self, module: nn.Module, forward: nn.Module, mesh: Mesh, loss: OutputLoss, head: LossHead | None = None
    ) -> None:
        self.module, self.forward, self.mesh, self.loss, self.head = module, forward, mesh, loss, head
        self.copies: Sequence[nn.Parameter] = ()

    def forward_backward(self, batches: Sequence[Inputs], divisor: float) -> float:
        share = 0.0
        for i, batch in enumerate(batches):
            with self._reduction(last=i == len(batches) - 1), loss_context(self.mesh.tp):
                loss = self._loss(batch) / divisor
                torch.autograd.backward(loss)
            share += float(loss.detach())
        return share

    def loss_of(self, batches: Sequence[Inputs]) -> float:
        """This rank's summed loss in nats, without gradients and dropout."""
        self.module.eval()
        try:
            with torch.no_grad(), loss_context(self.mesh.tp):
                return sum(float(self._loss(batch)) for batch in batches)
        finally:
            self.module.train()
            for part in self.module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()  # what backward would do: names lead to shards again, not to gathered copies

    def _loss(self, batch: Inputs) -> Tensor:
        device = self.mesh.ranks.device
        if self.head is not None:
            self.head.targets_BT = batch.targets_BS.to(device)
        output = self.forward(**batch.model_inputs(device))
        answer: Tensor = self.loss(output, batch) if self.head is None else output.logits
        return answer

    def _reduction(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients cross ranks in the last micro-batch's backward only."""
        if isinstance(self.forward, FSDPModule):
            self.forward.set_requires_gradient_sync(last)
            self.forward.set_is_last_backward(last)
        elif isinstance(self.forward, DistributedDataParallel) and not last:
            return self.forward.no_sync()
        return contextlib.nullcontext()


def copy_model(model: nn.Module) -> DistributedDataParallel:
    """DDP over all ranks, those that share sequences too; gradients are summed, because the loss is a global mean."""
    wrapped = DistributedDataParallel(model, forward_sync_buffers=False)
    wrapped.register_comm_hook(None, lambda state, bucket: _sum_gradients(bucket))
    return wrapped


def _sum_gradients(bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's own reduction divides by the number of ranks."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def _policies(mesh: Mesh, spec: ParallelSpec, precision: str) -> dict[str, Any]:
    policy = MixedPrecisionPolicy()
    if precision != "fp32":
        policy = MixedPrecisionPolicy(param_dtype=HALF[precision], reduce_dtype=torch.float32)
    offload = OffloadPolicy()
    if spec.offload:
        offload = CPUOffloadPolicy(pin_memory=mesh.ranks.device.type == "cuda")
    return {"mp_policy": policy, "offload_policy": offload}


def blocks_of(module: Any) -> list[nn.Module]:
    """The repeated parts of a model, or of a pipeline's stage."""
    kinds = getattr(module, "_no_split_modules", None)
    if kinds is None:
        return list(module.model.layers.values())
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return [
        part for parts in lists for part in parts if type(part).__name__ in kinds
    ]  # BERT's embeddings are a kind too


def shard_module(module: Any, mesh: Mesh, policies: dict[str, Any], reshard: bool) -> None:
    """FSDP2 over `mesh.fsdp`: every block of a large model, then the rest; gradients are summed."""
    if reshard:
        for block in blocks_of(module):
            # A pipeline runs many micro-batches before it is done with a block: gathered weights stay.
            fully_shard(block, mesh=mesh.fsdp, reshard_after_forward=mesh.degrees.pp == 1, **policies)
    fully_shard(module, mesh=mesh.fsdp, reshard_after_forward=False, **policies)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM
            part.set_gradient_divide_factor(1.0)
