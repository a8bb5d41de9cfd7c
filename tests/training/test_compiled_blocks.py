"""Compiled blocks give the numbers of those that are not, under the same names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.parity import TOLERANCE, Layout, difference, on_ranks, tiny_llama, train
from spark_jobs.errors import RequestError
from training.manifests import Checkpoint
from training.pretrain.compiled_blocks import KERNELS, check_compiler, compile_blocks, keep_kernels_apart
from training.pretrain.parallel import blocks_of
from training.specs import TrainSpec

STEPS = 2
TRAIN: dict[str, Any] = {
    "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 24},
    "num_steps": 4, "sequences_per_step": 4, "micro_batch": 2, "ranks": 2, "checkpoint_every": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [{}, {"strategy": "ddp"}], ids=["FSDP2", "DDP"])
def test_two_ranks_with_compiled_blocks_give_the_numbers_of_one_without(parallel: dict[str, Any]) -> None:
    (alone,) = on_ranks(lambda ranks: train(Layout("one rank", 1), ranks, False, STEPS), 1)
    compiled = Layout("compiled", 2, parallel | {"compile": True})
    assert difference(compiled, False, STEPS, alone).worst < TOLERANCE  # fails where names differ


@pytest.mark.slow
def test_job_with_compiled_blocks_publishes_the_weights_it_has_without_under_the_same_names(engine, world) -> None:
    found = []
    for compiled in (False, True):
        out = world.root / "checkpoints" / f"train-compiled{int(compiled)}"
        spec = TRAIN | {"parallel": {"compile": compiled}}
        engine.run(Checkpoint, "train", spec, out, **world.inputs())
        found.append(load_file(out / "data" / "model.safetensors"))
    plain, weights = found
    assert weights.keys() == plain.keys()
    for name, wanted in plain.items():
        torch.testing.assert_close(weights[name], wanted, rtol=1e-3, atol=1e-4)


def test_names_of_compiled_blocks_are_those_of_the_model() -> None:
    model, plain = tiny_llama(tied=False), tiny_llama(tied=False)
    compile_blocks(blocks_of(model))
    assert all(block._compiled_call_impl is not None for block in blocks_of(model))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_machine_without_compiler_is_told_before_ranks_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=r"train.parallel.compile true wants a C\+\+ compiler"):
        check_compiler()


def test_kernels_of_a_rank_that_starts_again_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for _ in range(2):
        monkeypatch.delenv(KERNELS, raising=False)
        keep_kernels_apart(tmp_path)
        found.add(os.environ[KERNELS])
    assert len(found) == 2
    assert all(Path(place).parent == tmp_path for place in found)


def test_kernels_lie_where_the_user_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS, "/kernels")
    keep_kernels_apart(tmp_path)
    assert os.environ[KERNELS] == "/kernels"


@pytest.mark.parametrize("name", ["tp", "cp", "pp"])
def test_compilation_of_cut_blocks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"parallel.compile true with {name} 2"):
        TrainSpec.model_validate({"parallel": {"compile": True, name: 2}})


def test_blocks_are_not_compiled_unless_asked_for() -> None:
    assert not TrainSpec().parallel.compile
