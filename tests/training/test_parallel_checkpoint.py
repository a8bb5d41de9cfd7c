"""A checkpoint saved under one layout is loaded under another, and the run goes on as if nothing had changed."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.parity import CLIP_NORM, RATE, Layout, batches_at, on_ranks, tiny_llama
from training.loop_spec import OptimizerSpec
from training.pretrain import checkpointing
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.optimizer import make_optimizer
from training.pretrain.parallel import parallelize
from training.pretrain.trainer import train_step

ONE = Layout("one rank", 1)
FSDP = Layout("fsdp", 2)
DDP = Layout("ddp", 2, {"strategy": "ddp"})
TP = Layout("tp", 2, {"tp": 2})
CP = Layout("cp", 2, {"cp": 2})
GPIPE = Layout("gpipe", 2, {"pp": 2, "schedule": "gpipe"})
INTERLEAVED = Layout("interleaved", 2, {"pp": 2, "schedule": "interleaved1f1b"})
FSDP_TP = Layout("fsdp-tp", 4, {"dp_shard": 2, "tp": 2})
FSDP_PP = Layout("fsdp-pp", 4, {"dp_shard": 2, "pp": 2})
SPLIT, LAST = 2, 4


def train_steps(layout: Layout, ranks: Ranks, folder: Path, last: int, tied: bool) -> list[tuple[float, float]]:
    """From the newest checkpoint in `folder` to step `last`, leaving a checkpoint and the final files."""
    mesh = make_mesh(ranks, layout.spec.degrees(ranks.world_size))
    model = parallelize(tiny_llama(tied), mesh, layout.spec)
    optimizer = make_optimizer(model.module, OptimizerSpec(learning_rate=RATE))
    state = checkpointing.train_state(model.module, optimizer)
    first = checkpointing.load_newest(folder, state, "a", ranks)
    curve = []
    for step in range(first, last):
        facts = train_step(model, optimizer, batches_at(step, mesh, layout), RATE, CLIP_NORM)
        curve.append((facts.loss, facts.grad_norm))
    checkpointing.save_step(folder, last, state, {"identity": "a"}, ranks, keep=2)
    checkpointing.save_final(folder, state, mesh)
    return curve


def run(layout: Layout, folder: Path, last: int, tied: bool) -> list[tuple[float, float]]:
    curve: Any = on_ranks(lambda ranks: train_steps(layout, ranks, folder, last, tied), layout.ranks)[0]
    return curve


@functools.cache
def unbroken(tied: bool) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """One rank from the first step to the last."""
    with tempfile.TemporaryDirectory() as folder:
        return run(ONE, Path(folder), LAST, tied), tensors_of(Path(folder))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    parts = {part: load_file(folder / f"{part}.safetensors") for part in ("model", "optimizer")}
    return {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("saved", "loaded", "tied"),
    [(FSDP, TP, True), (TP, ONE, False), (INTERLEAVED, FSDP, True), (ONE, INTERLEAVED, False), (GPIPE, CP, True),
     (FSDP_TP, FSDP_PP, False), (FSDP_PP, DDP, True), (DDP, FSDP_TP, False), (CP, GPIPE, True)],
    ids=lambda value: getattr(value, "name", "tied" if value else "untied"),
)  # fmt: skip
def test_run_goes_on_under_another_layout(tmp_path: Path, saved: Layout, loaded: Layout, tied: bool) -> None:
    curve, final = unbroken(tied)
    found = run(saved, tmp_path, SPLIT, tied) + run(loaded, tmp_path, LAST, tied)
    for one, other in zip(curve, found, strict=True):
        assert other == pytest.approx(one, rel=1e-12)
    tensors = tensors_of(tmp_path)
    assert {k: (v.shape, v.dtype) for k, v in tensors.items()} == {k: (v.shape, v.dtype) for k, v in final.items()}
    for name, value in final.items():
        torch.testing.assert_close(tensors[name], value, atol=1e-11, rtol=0)
