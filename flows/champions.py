"""Champions of all pipelines of this installation, for `nightmill status`: from ledgers and pointers, without asking MLflow."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from tasks.champion import differences
from tasks.ledger import awaiting, champion_now
from tasks.workspace import Workspace


def champion_table(home: Path) -> Table | None:
    """A line a pipeline that has decided something; None if none has."""
    found = sorted((home / "workspaces").glob("*/ledger.jsonl"))
    if not found:
        return None
    table = Table(box=None, pad_edge=False)
    for column in ("pipeline", "champion", "of night", "awaits approval", "to be mended"):
        table.add_column(column, overflow="fold")
    for ledger in found:
        workspace = Workspace(ledger.parent)
        champion, waiting, wrong = champion_now(workspace), awaiting(workspace), differences(workspace)
        table.add_row(
            workspace.name,
            f"version {champion.version}, {champion.address}" if champion else "none",
            champion.night if champion else "",
            f"version {waiting.candidate_version} until {waiting.until}" if waiting else "",
            Text("; ".join(wrong) + " (nightmill promote PRESET --repair)" if wrong else "", "red"),
        )
    return table
