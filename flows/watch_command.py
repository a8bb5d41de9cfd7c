"""`nightmill watch`: one look at the traffic of today's champion. It tells, and changes nothing: events are the flow's."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console import terminal
from flows.specs import NightlySpec, load_spec
from flows.watch_line import line_of
from spark_jobs.errors import RequestError
from tasks.engine import Engine, engine_in_use
from tasks.watch_steps import Look, look_at_traffic, watch_reference
from tasks.workspace import Workspace
from training.watch.page import number, probability, words_of

if TYPE_CHECKING:
    from training.manifests import ModelFolder, WatchReference

COLORS = {"ok": "green", "drift": "red", "too few": "yellow", "not compared": "dim"}


def watch(arguments: argparse.Namespace) -> int:
    """Print every check of the window. Exit code 0 also where something alarms: the look itself worked."""
    spec = load_spec(arguments.preset, arguments.settings)
    found = look_at_traffic(
        Workspace.of(spec.name), spec.watch, time_of(arguments.at), lambda model: snapshot(spec, model)
    )
    if arguments.json:
        line = line_of(spec.name, found).model_dump(mode="json", exclude={"events"})
        checks = [c.model_dump(mode="json") for c in found.facts.checks] if found.facts else []
        print(json.dumps(line | {"checks": checks}))  # noqa: T201
    else:
        print_look(terminal(), spec, found)
    return 0


def time_of(text: str) -> datetime:
    """Raises: RequestError unless it is empty (now) or ISO 8601; without a zone it is UTC."""
    if not text:
        return datetime.now(UTC)
    try:
        told = datetime.fromisoformat(text)
    except ValueError as err:
        raise RequestError(f"--at {text!r}: wanted a time like 2026-11-27T14:00, or nothing for now") from err
    return told if told.tzinfo else told.replace(tzinfo=UTC)


def snapshot(spec: NightlySpec, model: ModelFolder) -> WatchReference:
    """The champion's snapshot; the first time it takes the model some seconds to read and write."""
    engine = Engine(Workspace.of(spec.name), model.night)
    try:
        with engine_in_use(engine):
            return watch_reference(model, spec.watch.reference)
    finally:
        engine.close()


def print_look(console: Console, spec: NightlySpec, found: Look) -> None:
    if found.silent == "alarm":
        console.print(
            f"[red]silent[/red]: no line for {spec.watch.silent_minutes} minutes or more, though requests should have come"
        )
    if found.facts is None or found.report is None:
        why = "there is no champion yet" if found.status == "no champion" else "no line of the champion's traffic"
        console.print(f"{spec.name}: {why} between {found.start:%H:%M} and {found.end:%H:%M} UTC")
        return
    facts = found.facts
    table = Table(
        title=f"{spec.name}, {facts.start} to {facts.end}: {words_of(facts)}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in ("check", "measure", "value", "threshold", "by chance", "p", "n", "outcome"):
        table.add_column(name, justify="right" if name in ("value", "threshold", "by chance", "p", "n") else "left")
    for check in facts.checks:
        outcome = Text(check.outcome + (f" ({check.note})" if check.note else ""), COLORS[check.outcome])
        table.add_row(
            check.name, check.measure, number(check.value), number(check.threshold), number(check.by_chance),
            probability(check.p_adjusted), f"{check.n:,}", outcome,
        )  # fmt: skip
    console.print(table)
    console.print(f"page: {found.report.uri}/data/page.html", soft_wrap=True, highlight=False)
