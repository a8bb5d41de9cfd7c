from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.pretrain.progress import Cost, Progress, StepFacts, relayed_events

FACTS = StepFacts(loss=2.0, learning_rate=0.001, grad_norm=0.5, tokens=100)


def test_progress_opened_at_a_step_drops_what_came_after_it(tmp_path: Path) -> None:
    """A run killed at step 3 with its checkpoint at 2 must not leave step 3 twice."""
    progress = Progress(tmp_path, 0, 4)
    for step in (1, 2, 3):
        progress.step(step, FACTS)
    progress.close()
    progress = Progress(tmp_path, 2, 4)
    assert progress.num_tokens == 200
    for step in (3, 4):
        progress.step(step, FACTS)
    progress.close()
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]) == {"step", "loss", "learning_rate", "grad_norm", "tokens"}
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[-1]["eta_s"] == 0.0
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_relayed_events_reach_the_parent_and_children_do_not_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv("NIGHTMILL_ANSWER_FD", str(writer))
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n')  # of an earlier attempt: not sent again
    with relayed_events(path, poll_s=0.01):
        assert "NIGHTMILL_ANSWER_FD" not in os.environ
        with path.open("a") as file:
            file.write('{"step": 2}\n')
    assert os.environ["NIGHTMILL_ANSWER_FD"] == str(writer)
    os.close(writer)
    with os.fdopen(reader) as answers:
        assert [json.loads(line) for line in answers] == [{"event": {"job": "train", "step": 2}}]


def test_step_tells_speed_memory_and_the_share_of_the_peak(tmp_path: Path) -> None:
    """100 tokens of 2e9 FLOPs against a peak: MFU is FLOPs a token times tokens a second over it."""
    progress = Progress(tmp_path, 0, 2, Cost(2e9, 1e15, torch.device("cpu")))
    progress.step(1, FACTS, loader_s=0.0)
    progress.step(2, dataclasses.replace(FACTS, heldout_loss=1.5, noise_scale=64.0), loader_s=1e-3)
    progress.close()
    first, second = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    for event in (first, second):
        assert event["mfu"] == pytest.approx(2e9 * event["tokens_per_s"] / 1e15, abs=1e-4)
        assert event["tflops"] == pytest.approx(2e-3 * event["tokens_per_s"], rel=1e-3)
        assert event["memory_mb"] > 10
    assert first["loader_share"] == 0.0 < second["loader_share"]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {f"train/{n}" for n in ("loss", "mfu", "memory_mb", "loader_share", "tokens_per_s", "heldout_loss")} <= tags
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert (lines[1]["heldout_loss"], lines[1]["noise_scale"]) == (1.5, 64.0)
    assert "mfu" not in lines[0]


def test_progress_reopened_at_an_earlier_step_goes_on_from_there(tmp_path: Path) -> None:
    progress = Progress(tmp_path, 0, 4)
    for step in (1, 2, 3):
        progress.step(step, FACTS)
    progress.incident({"action": "rollback", "to_step": 1})
    progress = progress.reopened(1)
    progress.step(2, FACTS)
    progress.close()
    assert [json.loads(x)["step"] for x in (tmp_path / "curve.jsonl").read_text().splitlines()] == [1, 2]
    events = [json.loads(x) for x in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e.get("step", e.get("incident", {}).get("action")) for e in events] == [1, 2, 3, "rollback", 2]
