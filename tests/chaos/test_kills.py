"""SIGKILL in the middle of each step, then run again: the same manifests, nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

NIGHT = "2026-11-25"
DRIVER = Path(__file__).with_name("chaos_driver.py")
CHILD_STEPS = {"ingest", "clean", "dedup", "check-documents", "tokenizer", "tokenize", "check-tokens", "train", "export",
               "calibrate", "compress-int8", "compress-int4", "evaluate-dense", "evaluate-int8", "evaluate-int4",
               "measure-dense", "measure-int8", "measure-int4", "choose", "gate", "report-evaluation"}  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Drive:
    """Runs the driver against one home; `texts` is the folder of the corpus."""

    home: Path
    texts: Path

    def __call__(self, mode: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(DRIVER), str(self.home), NIGHT, str(self.texts), mode],
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode not in (0, -9):
            pytest.fail(f"{mode}: exit {done.returncode}\n{done.stderr[-3000:]}")
        return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}

    def leftovers(self) -> list[str]:
        """Processes, locks and attempts that should not be there after a finished run."""
        root = self.home / "workspaces" / "tiny"
        found = [str(p) for part in ("attempts", "locks") for p in (root / part).glob("*")]
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.Error, OSError):
                continue
            if environment.get("NIGHTMILL_HOME") == str(self.home) and process.pid != os.getpid():
                found.append(f"{process.pid} {process.cmdline()}")
        return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    location = importlib.util.spec_from_file_location("topics", DRIVER.parent.parent / "fixtures" / "topics.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module.write_topics(tmp_path_factory.mktemp("texts"))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> dict[str, str]:
    """Digests of all outputs of a night that nothing disturbed."""
    drive = Drive(tmp_path_factory.mktemp("unbroken"), texts)
    _, report = drive("none")
    assert drive.leftovers() == []
    return dict(report["outputs"])


def test_worker_killed_once_in_every_step_gives_the_same_outputs(
    unbroken: dict[str, str], texts: Path, tmp_path: Path
) -> None:
    drive = Drive(tmp_path, texts)
    _, report = drive("children")
    assert set(report["killed"]) == CHILD_STEPS
    assert report["outputs"] == unbroken
    assert drive.leftovers() == []


def test_flow_killed_in_step_after_step_gives_the_same_outputs(
    unbroken: dict[str, str], texts: Path, tmp_path: Path
) -> None:
    drive = Drive(tmp_path, texts)
    for step in ("ingest", "dedup", "tokenize", "train", "compress-int4", "release"):
        code, _ = drive(f"self:{step}")
        assert code == -9, f"the run was to die in {step}"
    _, report = drive("none")
    assert report["outputs"] == unbroken
    assert drive.leftovers() == []
