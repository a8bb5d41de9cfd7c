"""The train job with replicas that meet every few steps; and with a trace of some of them."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from training.manifests import Checkpoint, ModelFolder

TRAIN: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64},
    "num_steps": 13,
    "sequences_per_step": 4,
    "micro_batch": 1,
    "ranks": 2,
    "checkpoint_every": 4,
    "optimizer": {"learning_rate": 1e-2},
    "parallel": {"dp_replicate": 2},
    "local": {"every": 2, "outer": "nesterov"},  # the last round has one step
}


def digests(out: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((out / "data").iterdir())}


@pytest.fixture(scope="module")
def checkpoint(engine, world) -> Checkpoint:
    return engine.run(Checkpoint, "train", TRAIN, world.root / "checkpoints" / "train-0009", **world.inputs())


def test_replicas_learn_and_their_model_is_exported(engine, world, checkpoint: Checkpoint) -> None:
    curve = [json.loads(line) for line in (Path(checkpoint.folder()) / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == list(range(1, 14))
    assert checkpoint.final_loss < curve[0]["loss"] - 0.3
    inputs = {"checkpoint": checkpoint.uri, "tokenizer": world.tokenizer.uri}
    model = engine.run(ModelFolder, "export", {}, world.root / "models" / "export-0009", **inputs)
    assert AutoModelForCausalLM.from_pretrained(model.folder()).num_parameters() == checkpoint.num_parameters


def test_trace_of_each_rank_changes_no_byte_and_a_resume_neither(engine, world, checkpoint, tmp_path: Path) -> None:
    """Nor do checkpoints in the background."""
    out = tmp_path / "train-0002"
    spec = TRAIN | {"profile": {"first_step": 3, "num_steps": 2}, "checkpoint_mode": "async"}
    *_, last = engine.start("train", spec, out, **world.inputs())
    assert "outcome" in last, last
    assert digests(out) == digests(Path(checkpoint.uri))
    traces = sorted((out / "scratch" / "tensorboard" / "profile").iterdir())
    assert [trace.name for trace in traces] == ["rank-0.pt.trace.json.gz", "rank-1.pt.trace.json.gz"]
    for trace in traces:
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        steps = [event for event in events if event.get("name", "").startswith("Optimizer.step#AdamW")]
        assert len(steps) == 2
    shutil.rmtree(out / "scratch" / "checkpoints" / "step-00000013")
    *_, last = engine.start("train", TRAIN, out, **world.inputs())
    assert "outcome" in last, last
    assert digests(out) == digests(Path(checkpoint.uri))


def test_replicas_do_not_resume_on_another_number_of_ranks(engine, world, checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "train-0003"
    shutil.copytree(Path(checkpoint.uri) / "scratch" / "checkpoints", out / "scratch" / "checkpoints")
    spec = TRAIN | {"ranks": 1, "parallel": {"dp_replicate": 1}}
    error, message = engine.fail("train", spec, out, **world.inputs())
    assert error == "TrainingError"
    assert "a checkpoint of another request or corpus" in message
