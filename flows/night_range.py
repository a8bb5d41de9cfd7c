"""A range of nights, as dates."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from spark_jobs.errors import RequestError
from tasks.workspace import parse_night

MOST = 366  # nights at once


def nights_between(first: str, last: str) -> Iterator[str]:
    """Dates from `first` to `last`, both included, ascending.

    Raises: RequestError if one is no date, they are the wrong way round, too many, or in the future.
    """
    today = datetime.now(UTC).date()
    if not first:
        raise RequestError("backfill: no first night; name it, as 2026-11-01")
    start = date.fromisoformat(parse_night(first))
    end = date.fromisoformat(parse_night(last)) if last else today - timedelta(days=1)
    count = (end - start).days + 1
    if count < 1:
        raise RequestError(f"backfill from {start} to {end}: the last night is before the first")
    if end > today:
        raise RequestError(f"backfill to {end}: that night is still to come, today is {today} (UTC)")
    if count > MOST:
        raise RequestError(f"backfill from {start} to {end}: {count} nights, at most {MOST} at once")
    return ((start + timedelta(days=day)).isoformat() for day in range(count))
