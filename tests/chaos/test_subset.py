"""The part of `make chaos` that there is time for: one kill in each step of a tiny night, and two full disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STEPS = 23

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last line, and what stands above it."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.chaos",
            "--subset",
            "--home",
            str(tmp_path_factory.mktemp("chaos") / "home"),
        ],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        text=True,
        timeout=1400,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode in (0, 1), lines[-20:]
    return {**json.loads(lines[-1]), "said": lines}


def test_every_step_killed_once_gives_the_outputs_of_an_unbroken_night(found: dict[str, Any]) -> None:
    assert found["kills"] >= STEPS
    assert [line for line in found["said"] if "WRONG" in line] == []
    assert found["identical"] == found["kills"]


def test_nothing_is_left_by_any_kill(found: dict[str, Any]) -> None:
    assert found["leftovers"] == 0
