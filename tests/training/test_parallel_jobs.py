"""The train job under other layouts: the same numbers, the same files, a resume on another layout, early refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

TRAIN: dict[str, Any] = {
    "model": {
        "hidden_size": 32, "num_layers": 4, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 64,
    },
    "num_steps": 6, "sequences_per_step": 4, "micro_batch": 2, "ranks": 2, "checkpoint_every": 2,
}  # fmt: skip


def curve_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "data" / "curve.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sharded(engine, world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jobs") / "train-0001"
    *_, last = engine.start("train", TRAIN, out, **world.inputs())
    assert "outcome" in last, last
    return out


@pytest.mark.parametrize(
    "parallel",
    [{"tp": 2}, {"pp": 2, "schedule": "interleaved1f1b"}, {"cp": 2}, {"strategy": "ddp"}],
    ids=["TP", "PP", "CP", "DDP"],
)
def test_train_under_another_layout_publishes_the_same_model(
    engine, world, sharded: Path, tmp_path: Path, parallel: dict[str, Any]
) -> None:
    out = tmp_path / "train-0002"
    *_, last = engine.start("train", TRAIN | {"parallel": parallel}, out, **world.inputs())
    assert "outcome" in last, last
    for one, other in zip(curve_of(sharded), curve_of(out), strict=True):
        assert other["tokens"] == one["tokens"]
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
    expected, found = (load_file(place / "data" / "model.safetensors") for place in (sharded, out))
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}


def test_train_resumes_on_another_layout(engine, world, sharded: Path, tmp_path: Path) -> None:
    out = tmp_path / "train-0003"
    *_, last = engine.start("train", TRAIN | {"parallel": {"tp": 2}}, out, **world.inputs())
    assert "outcome" in last, last
    shutil.rmtree(out / "scratch" / "checkpoints" / "step-00000006")
    before = curve_of(out)
    spec = TRAIN | {"parallel": {"pp": 2, "schedule": "1f1b"}}
    *_, last = engine.start("train", spec, out, **world.inputs())
    assert "outcome" in last, last
    after = curve_of(out)
    assert after[:4] == before[:4]
    for one, other in zip(before[4:], after[4:], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_two_trainings_at_once_on_one_machine_do_not_meet(
    engine, engine_told, world, sharded: Path, tmp_path: Path
) -> None:
    """With a fixed port for their meeting, the second would fail, or its ranks join the first (pytorch#126510)."""
    outs = [tmp_path / "train-0005", tmp_path / "train-0006"]
    begun = [
        app.start("train", TRAIN, out, **world.inputs()) for app, out in zip((engine, engine_told()), outs, strict=True)
    ]
    for messages in begun:
        *_, last = messages
        assert "outcome" in last, last
    assert curve_of(outs[0]) == curve_of(outs[1]) == curve_of(sharded)


def test_train_on_sequences_that_cannot_be_cut_is_refused(engine, world, tmp_path: Path) -> None:
    spec = TRAIN | {"ranks": 12, "parallel": {"cp": 12}}
    error, message = engine.fail("train", spec, tmp_path / "train-0004", **world.inputs())
    assert error == "RequestError"
    assert "sequences of 32 tokens cannot be cut into 24" in message
