"""At the start of a night: what will run, why, and what it is expected to take, as an artifact; refused when it cannot fit."""

from __future__ import annotations

from flows.local_run import planned_steps
from flows.night import Night
from tasks.artifacts import publish_plan
from tasks.forecast import forecast, require_room


def announce(tonight: Night) -> None:
    """Raises: DiskFull before any work is done."""
    if tonight.engine.planning:
        return
    steps = planned_steps(tonight.spec, tonight.night, "flows.nightly:nightly")
    told = forecast(tonight.workspace, steps)
    publish_plan(list(steps), told, tonight.night)
    require_room(tonight.workspace, told)
