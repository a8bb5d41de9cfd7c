"""Whether a pipeline's nights still come: the age of its newest finished night, and the event that says it is missing.

Read from the records on the disk, not from the server's memory of runs, so that a night counts only if it left its outputs.
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

from spark_jobs.manifests import MANIFEST, Frozen
from tasks.ledger import read_ledger
from tasks.workspace import Workspace

EVENT = "nightmill.night.missing"
NAMESPACE = uuid.UUID("8b0f9c3e-52b1-4c8e-9a1c-3d2f0a6f7b11")  # of event ids, any fixed one


class Missing(Frozen):
    """What the check found. newest: the night that finished last, empty for none; finished: when."""

    pipeline: str
    newest: str = ""
    finished: datetime | None = None
    hours: float = 0.0
    limit_hours: float
    is_missing: bool = False
    message: str = ""


def look(workspace: Workspace, limit_hours: float, now: datetime) -> Missing:
    """The newest finished night of a workspace against the limit. A pipeline that never finished a night is not missing one yet,
    until its workspace is older than the limit.
    """
    found = finished_nights(workspace)
    if not found and not workspace.root.is_dir():
        return Missing(
            pipeline=workspace.name, limit_hours=limit_hours, message="no night was ever begun; nothing is missing yet"
        )
    newest, since = found[-1] if found else ("", _began(workspace.root))
    hours = (now - since).total_seconds() / 3600
    told = f"night {newest}" if newest else "no night at all, begun"
    return Missing(
        pipeline=workspace.name,
        newest=newest,
        finished=since if newest else None,
        hours=round(hours, 1),
        limit_hours=limit_hours,
        is_missing=hours > limit_hours,
        message=f"{workspace.name}: {told} was the last to finish, {hours:.1f} hours ago; wanted one every {limit_hours:g} hours",
    )


def finished_nights(workspace: Workspace) -> list[tuple[str, datetime]]:
    """Nights that came to an end, and when: decided by their gate, or over because there was nothing new. Oldest end first."""
    ends = [(line.night, datetime.fromisoformat(line.when)) for line in read_ledger(workspace) if line.by == "gate"]
    for night in workspace.nights():
        entry = workspace.record(night).outputs.get("ingest")
        manifest = workspace.at(entry.address) / MANIFEST if entry else None
        if manifest is not None and manifest.is_file() and json.loads(manifest.read_text())["num_rows"] == 0:
            ends.append((night, _time(manifest)))
    return sorted(ends, key=lambda end: end[1])


def emit_missing(found: Missing) -> None:
    """Tell the server, once for each `limit_hours` that the night is missing: the same id is the same event to it."""
    from prefect.events import emit_event

    times = int(found.hours // found.limit_hours)
    emit_event(
        EVENT,
        resource={
            "prefect.resource.id": f"nightmill.pipeline.{found.pipeline}",
            "prefect.resource.name": found.pipeline,
        },
        payload=found.model_dump(mode="json"),
        id=uuid.uuid5(NAMESPACE, f"{found.pipeline}|{found.finished}|{found.limit_hours}|{times}"),
    )


def _began(folder: Path) -> datetime:
    """When the oldest thing in a workspace was made."""
    times = [path.stat().st_mtime for path in folder.iterdir()] or [folder.stat().st_mtime]
    return datetime.fromtimestamp(min(times), UTC)


def _time(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
