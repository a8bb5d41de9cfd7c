"""Whether nothing answers any more: requests that should have come, by the pace before the last line, and did not."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path

from training.watch.episodes import Sight
from training.watch.spec import WatchSpec
from training.watch.traffic import newest, read_lines


def silence(folder: Path, spec: WatchSpec, now: datetime) -> Sight:
    """clear: a line ended within `silent_minutes`, of a server that was asked or said that it was not. alarm: none did, and
    at the pace of the window before the last line, none by chance has a probability of at most alpha (Poisson:
    exp(-expected)). unknown: too quiet to tell, as at night, or no traffic at all yet.
    """
    last = newest(folder, now)
    if last is None:
        return "unknown"
    quiet = (now - last) / timedelta(minutes=1)
    if quiet < spec.silent_minutes:
        return "clear"
    before = read_lines(folder, last - timedelta(minutes=spec.window_minutes), last).lines
    expected = sum(line.requests for line in before) / spec.window_minutes * quiet
    return "alarm" if math.exp(-expected) <= spec.alpha else "unknown"
