"""Ranks and how the model is spread over them: FSDP2, NCCL where CUDA is, gloo elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import LlamaForCausalLM

from training.processes import num_threads

# Below this many parameters a rank keeps the gathered weights between forward and backward: it saves one all-gather
# a block, and costs at most 200 MB.
RESHARD_FROM = 50_000_000


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join_ranks() -> Ranks:
    """Join the process group the launcher described in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT."""
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(num_threads(local_world))
        dist.init_process_group("gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def shard_model(model: LlamaForCausalLM, ranks: Ranks, precision: str = "fp32") -> LlamaForCausalLM:
    """Shard every block and the rest over all ranks; gradients are summed, because the loss is already a global mean.

    Weights stay in their own dtype; bf16 is what forward and backward compute in, reductions are fp32.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    reshard = sum(p.numel() for p in model.parameters()) >= RESHARD_FROM
    model.to(ranks.device)
    if reshard:
        for block in model.model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM
            module.set_gradient_divide_factor(1.0)
    return model


def sync_gradients(model: nn.Module, last: bool) -> None:
    """Reduce gradients over ranks in the next backward only if it belongs to the step's last micro-batch."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last)
    model.set_is_last_backward(last)
