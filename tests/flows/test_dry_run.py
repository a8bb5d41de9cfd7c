"""`nightmill run --dry-run` tells what a night would do and need, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.cli import main
from flows.dry_run import in_bytes


def test_dry_run_tells_plan_and_needs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    assert main(["run", "llama-8b", "--dry-run", "--json", "--set", "train.ema.decay=0.999"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {step["state"] for step in told["steps"]} == {"would run"}
    memory = told["train"]["memory"]
    assert memory["average"] == memory["gradients"] == told["train"]["parameters"] * 4 // 8
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
    assert not (tmp_path / "home" / "workspaces" / "llama-8b" / "attempts").exists()


def test_dry_run_of_a_model_that_cannot_be_trained_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    assert main(["run", "demo", "--dry-run", "--set", "train.model.architecture=llamma"]) == 2
    assert "near: llama" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (6_980_000_000, "6.98 GB"), (2e15, "2e+03 TB")]
)
def test_sizes_are_told_with_three_digits(size: float, text: str) -> None:
    assert in_bytes(size) == text
