"""The night that did not come: found on the disk, told as an event."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.dead_man import look
from tasks.workspace import Workspace, append_line

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)
LIMIT = 26.0


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspaces" / "tiny")


def decided(workspace: Workspace, night: str, when: datetime, by: str = "gate") -> None:
    append_line(
        workspace.ledger,
        {
            "night": night, "decision": "kept", "by": by, "why": "no gain", "who": "x", "when": when.isoformat(),
            "candidate": "models/a", "candidate_digest": "0", "champion": "", "champion_digest": "", "champion_version": "",
            "evidence": "verdicts/a", "evidence_digest": "0",
        },
    )  # fmt: skip


def nothing_new(workspace: Workspace, night: str, when: datetime, rows: int) -> None:
    """A night that ended, or stopped, after its first step."""
    folder = workspace.at(f"documents/ingest-{night}")
    folder.mkdir(parents=True)
    (folder / "_manifest.json").write_text(json.dumps({"num_rows": rows}))
    os.utime(folder / "_manifest.json", (when.timestamp(),) * 2)
    record = {
        "night": night,
        "outputs": {"ingest": {"role": "ingest", "address": f"documents/ingest-{night}", "digest": "0"}},
    }
    (workspace.root / "nights").mkdir(exist_ok=True)
    (workspace.root / "nights" / f"{night}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("hours", "missing"), [(25.9, False), (26.1, True)])
def test_newest_finished_night_older_than_the_limit_is_missing(
    workspace: Workspace, hours: float, missing: bool
) -> None:
    decided(workspace, "2026-05-17", NOW - timedelta(days=2))
    decided(workspace, "2026-05-19", NOW - timedelta(hours=hours))
    found = look(workspace, LIMIT, NOW)
    assert (found.is_missing, found.newest) == (missing, "2026-05-19")
    assert "2026-05-19" in found.message


def test_night_with_nothing_new_counts_as_finished(workspace: Workspace) -> None:
    decided(workspace, "2026-05-17", NOW - timedelta(days=2))
    nothing_new(workspace, "2026-05-19", NOW - timedelta(hours=5), rows=0)
    assert not look(workspace, LIMIT, NOW).is_missing


def test_night_that_stopped_after_its_first_step_does_not_count(workspace: Workspace) -> None:
    decided(workspace, "2026-05-17", NOW - timedelta(days=2))
    nothing_new(workspace, "2026-05-19", NOW - timedelta(hours=5), rows=7)
    assert look(workspace, LIMIT, NOW).is_missing


def test_decision_by_hand_is_no_night(workspace: Workspace) -> None:
    decided(workspace, "2026-05-17", NOW - timedelta(days=2))
    decided(workspace, "2026-05-17", NOW - timedelta(hours=1), by="hand")
    assert look(workspace, LIMIT, NOW).is_missing


def test_pipeline_that_was_never_begun_is_not_missing(workspace: Workspace) -> None:
    assert not look(workspace, LIMIT, NOW).is_missing


def test_pipeline_whose_first_night_never_finishes_is_missing_after_the_limit(workspace: Workspace) -> None:
    (workspace.root / "logs").mkdir(parents=True)
    os.utime(workspace.root / "logs", ((NOW - timedelta(hours=30)).timestamp(),) * 2)
    assert look(workspace, LIMIT, NOW).is_missing
