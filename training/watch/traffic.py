"""The lines that servers leave: `<workspace>/traffic/<YYYY-MM-DD>/<host>-<pid>.jsonl`, one a minute and replica.

A file may end in half a line (a server that was killed) or hold what no server of ours wrote: such lines are counted, never
an error, for the watch must go on where a server did not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from training.watch.sketch import TrafficLine, merge


@dataclass(frozen=True)
class Traffic:
    """Lines that ended in some time, in no order. replicas: files they are from."""

    lines: list[TrafficLine]
    num_unreadable: int
    replicas: int

    def of(self, model: str) -> list[TrafficLine]:
        return [line for line in self.lines if line.model == model]

    def other_models(self, model: str) -> dict[str, int]:
        """Requests that other models answered, by address: those before a swap, or of another pipeline's server."""
        found: dict[str, int] = {}
        for line in self.lines:
            if line.model != model and line.requests:
                found[line.model] = found.get(line.model, 0) + line.requests
        return dict(sorted(found.items()))


def read_lines(folder: Path, start: datetime, end: datetime) -> Traffic:
    """Lines with start < at <= end."""
    lines: list[TrafficLine] = []
    unreadable, replicas = 0, set()
    for day in days_between(start, end):
        for path in sorted((folder / day).glob("*.jsonl")):
            for line in _lines_of(path):
                if line is None:
                    unreadable += 1
                elif start < line.at <= end:
                    lines.append(line)
                    replicas.add(path.name)
    return Traffic(lines, unreadable, len(replicas))


def hourly(folder: Path, start: datetime, end: datetime, model: str = "") -> list[TrafficLine]:
    """Sums by hour, oldest first; of one model, or of any (empty). A day of lines in memory at a time."""
    sums: list[TrafficLine] = []
    for day in days_between(start, end):
        midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
        day_end = min(midnight + timedelta(days=1), end)
        found = read_lines(folder, max(start, midnight), day_end).lines
        by_hour: dict[int, list[TrafficLine]] = {}
        for line in found:
            if line.requests and line.model == (model or line.model):
                by_hour.setdefault(line.at.astimezone(UTC).hour, []).append(line)
        sums += [total(by_hour[hour], model) for hour in sorted(by_hour)]
    return sums


def total(lines: list[TrafficLine], model: str = "") -> TrafficLine:
    """One line of all, called `model`; of several models only where that is empty."""
    return TrafficLine.model_validate(merge(line.model_dump(mode="json") | {"model": model} for line in lines))


def newest(folder: Path, now: datetime) -> datetime | None:
    """End of the last line of any replica up to `now`: when something last answered or could have."""
    for day in sorted((path.name for path in folder.glob("????-??-??")), reverse=True):
        ends = [line.at for path in (folder / day).glob("*.jsonl") for line in _lines_of(path) if line is not None]
        before = [at for at in ends if at <= now]
        if before:
            return max(before)
    return None


def days_between(start: datetime, end: datetime) -> list[str]:
    first, last = start.astimezone(UTC).date(), end.astimezone(UTC).date()
    return [(first + timedelta(days=i)).isoformat() for i in range((last - first).days + 1)]


def forget_days(folder: Path, before: date) -> list[str]:
    """Delete the folders of days before `before`; what else lies there stays. Returns the days."""
    gone = []
    for path in sorted(folder.glob("????-??-??")):
        try:
            old = date.fromisoformat(path.name) < before
        except ValueError:
            continue
        if old and path.is_dir():
            shutil.rmtree(path)
            gone.append(path.name)
    return gone


def _lines_of(path: Path) -> Iterator[TrafficLine | None]:
    """None for a line that cannot be read."""
    with path.open("rb") as stream:
        for raw in stream:
            if raw.strip():
                try:
                    line = TrafficLine.model_validate_json(raw)
                    yield line if line.at.tzinfo is not None else None
                except ValidationError:
                    yield None
