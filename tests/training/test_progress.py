from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from training.pretrain.progress import Progress, StepFacts, relayed_events

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
