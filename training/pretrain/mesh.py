"""This process among its peers: process group, device mesh, and sums in which every number counts once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from training.parallel_spec import Coordinate, Degrees
from training.pretrain.allocator import keep_freed_memory
from training.pretrain.loss import sum_over_ranks
from training.processes import num_threads


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join_ranks(offload: bool = False) -> Ranks:
    """Join the process group the launcher described in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.

    `offload`: gradients will lie in host memory, where their norm is summed by gloo.
    """
    local_rank, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        _join("cpu:gloo,cuda:nccl" if offload else "nccl", device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(num_threads(local_world))
        keep_freed_memory()
        _join("gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def _join(backend: str, device: torch.device | None = None) -> None:
    """Keys of its own for each start of the ranks: the launcher's store outlives them, with addresses of ranks gone."""
    store, rank, world_size = next(rendezvous("env://"))
    own = PrefixStore(f"start-{num_restarts()}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world_size, device_id=device)


def num_restarts() -> int:
    """How often the launcher has started all ranks again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@dataclass(frozen=True)
class Mesh:
    """Ranks laid out by degrees.

    `weights` has dimensions pp, dp_replicate, fsdp (dp_shard x cp), tp: where parameters live. Those of one rank are left
    out, but for fsdp: FSDP is applied over one rank too, because it holds the precision policy and adds up partial
    gradients of tensor-parallel norms. `sequence` is the group of ranks that share sequences.
    """

    ranks: Ranks
    degrees: Degrees
    weights: DeviceMesh
    sequence: dist.ProcessGroup | None

    @property
    def at(self) -> Coordinate:
        return self.degrees.coordinate(self.ranks.rank)

    @property
    def fsdp(self) -> DeviceMesh:
        """One dimension, or two (replicate, shard) for HSDP."""
        return self.weights["dp_replicate", "fsdp"] if self.degrees.dp_replicate > 1 else self.weights["fsdp"]

    @property
    def tp(self) -> DeviceMesh | None:
        return self.weights["tp"] if self.degrees.tp > 1 else None

    @property
    def stages(self) -> dist.ProcessGroup | None:
        """Ranks with the same data that hold other blocks of the model."""
        return self.weights.get_group("pp") if self.degrees.pp > 1 else None

    def sum_once(self, values: Sequence[float]) -> list[float]:
        """Sum over all ranks of numbers that tensor-parallel peers share, and only the last stage knows."""
        counts = self.at.tp == 0 and self.at.pp == self.degrees.pp - 1
        return sum_over_ranks(values if counts else [0.0] * len(values), self.ranks.device)


def make_mesh(ranks: Ranks, degrees: Degrees) -> Mesh:
    """A collective: every rank must call it."""
    sizes = {"pp": degrees.pp, "dp_replicate": degrees.dp_replicate, "fsdp": degrees.fsdp, "tp": degrees.tp}
    sizes = {name: size for name, size in sizes.items() if size > 1 or name == "fsdp"}
    device = ranks.device.type
    weights = init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    sequence = None
    if degrees.cp > 1:
        shape = (ranks.world_size // (degrees.cp * degrees.tp), degrees.cp, degrees.tp)
        sequence = init_device_mesh(device, shape, mesh_dim_names=("other", "cp", "tp")).get_group("cp")
    return Mesh(ranks, degrees, weights, sequence)
