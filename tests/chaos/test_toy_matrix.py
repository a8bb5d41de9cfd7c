"""`make chaos` itself, over two small steps: every moment, both signals, flow and worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
KILLS = 8 + 8 + 7  # of the flow in two steps; of the worker in one


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("chaos") / "home"
    done = subprocess.run(
        [sys.executable, str(HERE / "toy_matrix.py"), str(home)],
        env=os.environ | {"PYTHONPATH": f"{HERE}:{Path.cwd()}"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.timeout(700)
def test_every_kill_is_followed_by_the_outputs_of_an_unbroken_night(found: dict[str, Any]) -> None:
    assert found["kills"] == KILLS
    assert found["wrong"] == []


def test_nothing_is_left_by_any_of_them(found: dict[str, Any]) -> None:
    assert found["leftovers"] == []


def test_flow_is_killed_at_the_moments_that_were_meant(found: dict[str, Any]) -> None:
    """A worker may be quicker than the eye that watches its folder; the flow process is not."""
    assert [kill for kill in found["late"] if "to flow" in kill and "mid-write" not in kill] == []
