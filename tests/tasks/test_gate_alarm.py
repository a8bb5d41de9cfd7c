"""When a gate's refusal is told, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.engine import Engine, StepResult
from tasks.gate_alarm import EVENT, tell_refusal
from tasks.workspace import Workspace
from training.manifests import Verdict


def verdict(**changed: Any) -> Verdict:
    fields: dict[str, Any] = {
        "step": "gate", "key": "0123456789abcdef", "night": "2026-11-27", "format": "json", "num_rows": 1, "files": (), "spec": {},
        "code": {}, "libraries": {}, "decision": "keep", "reason": "worse by 0.1", "candidate": "models/b-1", "champion": "models/a-1",
    }  # fmt: skip
    return Verdict(**(fields | changed))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = Engine(Workspace(tmp_path / "demo"), "2026-11-27")
    engine.results.append(StepResult(step="gate", state="ran", why="no output yet"))
    return engine


def told(engine: Engine, of: Verdict) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    assert tell_refusal(engine, of, lambda event, **facts: seen.append({"event": event} | facts)) is bool(seen)
    return seen


def test_a_kept_champion_is_told_with_the_reason(engine):
    (event,) = told(engine, verdict())
    assert event["event"] == EVENT
    assert event["resource"]["prefect.resource.id"] == "nightmill.pipeline.demo"
    assert event["payload"]["message"] == (
        "demo: the candidate of night 2026-11-27 does not replace the champion: worse by 0.1"
    )


def test_the_same_verdict_is_the_same_event(engine):
    assert told(engine, verdict())[0]["id"] == told(engine, verdict())[0]["id"]
    assert told(engine, verdict())[0]["id"] != told(engine, verdict(key="fedcba9876543210"))[0]["id"]


@pytest.mark.parametrize("changed", [{"decision": "promote"}, {"champion": ""}, {"key": "planned"}])
def test_a_promotion_a_first_model_and_a_plan_tell_nothing(engine, changed):
    assert told(engine, verdict(**changed)) == []


def test_a_cached_verdict_was_told_before(engine):
    engine.results[:] = [StepResult(step="gate", state="cached", why="same inputs")]
    assert told(engine, verdict()) == []
