"""One small step killed at each moment by each signal: what is there right after, and after the step has run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("moments_driver.py")
PARTS = [f"data/part-{number}.txt" for number in range(3)]
WRITTEN = ["_manifest.json", "_report.json", *PARTS]
LEFT = {  # in the attempt, at the address
    "before start": ([], []),
    "mid-write": (PARTS[:1], []),
    "after write": (WRITTEN, []),
    "after commit": ([], WRITTEN),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path_factory.mktemp("moments"))],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 1 + 2 * len(LEFT)
    return found


def test_process_dies_at_the_moment_that_was_meant(killed: list[dict[str, Any]]) -> None:
    for case in killed[1:]:
        attempt, address = LEFT[case["moment"]]
        here = [f"attempts/clean/{name}" for name in attempt] + [f"documents/clean/{name}" for name in address]
        assert [path for path in case["left"] if not path.startswith("locks/")] == sorted(here), case
        assert case["ended"] == {"SIGKILL": -9, "SIGTERM": 1}[case["signal"]]


def test_lock_is_left_by_sigkill_alone(killed: list[dict[str, Any]]) -> None:
    for case in killed[1:]:
        assert [p for p in case["left"] if p.startswith("locks/")] == (
            ["locks/clean"] if case["ended"] == -9 else []
        ), case


def test_step_run_again_has_the_digest_of_an_unbroken_one_and_leaves_nothing(killed: list[dict[str, Any]]) -> None:
    for case in killed[1:]:
        assert case["digest"] == killed[0]["digest"], case
        assert case["after"] == sorted(
            [*(f"documents/clean/{name}" for name in WRITTEN), f"nights/{'2026-11-25'}.json"]
        ), case
