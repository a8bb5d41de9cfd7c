"""Does a night still finish as often as it should? Deployment `dead-man`, every hour; the alarm is an event."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow

from flows.specs import NightlySpec
from tasks.artifacts import publish_markdown
from tasks.dead_man import Missing, emit_missing, look
from tasks.workspace import Workspace


@flow(name="dead-man", flow_run_name="{spec.name}")
def dead_man(spec: NightlySpec) -> Missing:
    """Emit `nightmill.night.missing` when the newest finished night is older than `schedule.missing_hours`.

    Args:
        spec: Which pipeline; this flow reads `name` and `schedule.missing_hours`.
    """
    found = look(Workspace.of(spec.name), spec.schedule.missing_hours, datetime.now(UTC))
    if found.is_missing:
        emit_missing(found)
    publish_markdown("dead-man", found.message, "The night is missing" if found.is_missing else "The night is there")
    return found
