"""What becomes of nights that were missed, or that would meet another one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spark_jobs.manifests import Frozen


class ScheduleSpec(Frozen):
    """Read when the scheduler starts a night. A night started by hand, or by a backfill, is never skipped."""

    catch_up: Literal["latest", "all", "none"] = Field(
        "latest",
        description="Nights missed while nothing ran. latest: only the newest is made up for, which reads all files that "
        "came since; all: each, oldest first; none: a night that cannot start in time is not run.",
    )
    late_hours: float = Field(
        6.0, gt=0, description="With catch_up none: hours after its time in which a night may still start."
    )
    overlap: Literal["wait", "skip"] = Field(
        "wait",
        description="A night whose time came while the one before it still worked. wait: it runs after that; skip: it does not.",
    )
    missing_hours: float = Field(
        26.0, gt=0, description="Hours since a night last finished after which deployment `dead-man` raises the alarm."
    )
