"""Whether a night that the scheduler started should run, or give way to a newer one. Decided on times alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from spark_jobs.manifests import Frozen
from tasks.schedule_spec import ScheduleSpec


class Overlap(Frozen):
    """Another run of the same deployment that worked when this one's time came. ended: None while it still does."""

    name: str
    ended: datetime | None = None


def why_not(
    spec: ScheduleSpec, due: datetime, now: datetime, newer: Sequence[datetime], overlaps: Sequence[Overlap] = ()
) -> str:
    """Why a night due at `due` is not run at `now`, in words for its state; empty if it is.

    newer: when later runs of the same deployment that have not begun were due. All times with a time zone.
    """
    waiting = sorted(time for time in newer if due < time <= now)
    if spec.catch_up == "latest" and waiting:
        return (
            f"Night {_night(due)} was missed; {_night(waiting[-1])} is due as well and reads all that came since "
            "(schedule.catch_up latest). To make up for it: nightmill backfill"
        )
    if spec.catch_up == "none" and now - due > timedelta(hours=spec.late_hours):
        hours = (now - due).total_seconds() / 3600
        return (
            f"Night {_night(due)} could start only {hours:.1f} hours late, wanted at most {spec.late_hours:g} "
            "(schedule.catch_up none, schedule.late_hours). To make up for it: nightmill backfill"
        )
    if spec.overlap == "skip" and overlaps:
        return f"{overlaps[0].name} still worked when night {_night(due)} was due (schedule.overlap skip)"
    return ""


def _night(time: datetime) -> str:
    return time.astimezone(UTC).date().isoformat()
