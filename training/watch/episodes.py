"""From looks to alarms: an alarm is told when it begins and when it is over, and not in between.

An episode of a check begins with the first look in which it alarms. It is over after `resolve_windows` looks in a row that
could tell, and did not alarm; a look that could not (too few requests) leaves it open. A pure function of the state before
and one look: the same look twice tells nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from spark_jobs.manifests import Frozen

Sight = Literal["alarm", "clear", "unknown"]
KINDS = {"errors": "nightmill.traffic.errors", "silent": "nightmill.traffic.silent"}  # everything else is drift
DRIFT = "nightmill.drift"


class Episode(Frozen):
    since: str
    looks_clear: int = 0


class Episodes(Frozen):
    """What is open, by check, as it is kept between two looks. last_look: its end, so that an older look changes nothing."""

    open: dict[str, Episode] = Field(default_factory=dict)
    last_look: str = ""


class Alarm(Frozen):
    """An event to tell: `nightmill.drift`, or with `.resolved` behind it. since: of the longest of its checks."""

    name: str
    checks: tuple[str, ...]
    since: str


def follow(
    state: Episodes, sights: Mapping[str, Sight], end: str, resolve_windows: int
) -> tuple[Episodes, list[Alarm]]:
    """State after a look that ended at `end` (ISO, UTC), and what is to be told: at most one event a kind and direction."""
    if end <= state.last_look:
        return state, []
    still = dict(state.open)
    begun: list[str] = []
    over: dict[str, str] = {}
    for check, sight in sights.items():
        episode = still.get(check)
        if sight == "alarm":
            begun += [check] if episode is None else []
            still[check] = Episode(since=episode.since if episode else end)
        elif sight == "clear" and episode is not None:
            if episode.looks_clear + 1 >= resolve_windows:
                over[check] = still.pop(check).since
            else:
                still[check] = Episode(since=episode.since, looks_clear=episode.looks_clear + 1)
    alarms = [
        Alarm(name=name, checks=tuple(checks), since=end) for name, checks in _by_kind(begun).items()
    ] + [
        Alarm(name=f"{name}.resolved", checks=tuple(checks), since=min(over[c] for c in checks))
        for name, checks in _by_kind(list(over)).items()
    ]  # fmt: skip
    return Episodes(open=dict(sorted(still.items())), last_look=end), alarms


def _by_kind(checks: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for check in checks:
        found.setdefault(KINDS.get(check, DRIFT), []).append(check)
    return found
