"""A flow run here and now, in this process tree, with a Prefect server of its own: what `nightmill run` and its like do.

Prefect reads where its server is once, when it is imported: so flows are named here by path, and imported when it is up.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tasks.artifacts import describe_total
from tasks.child import sweep_orphans
from tasks.engine import Engine, StepResult, engine_in_use
from tasks.forecast import forecast, require_room
from tasks.machine import require_free_disk
from tasks.servers import EmbeddedPrefect, client_environment
from tasks.workspace import Workspace, home, parse_night

if TYPE_CHECKING:
    from flows.engines import NamedSpec

SPARK_STEPS = {
    "ingest", "classifier", "clean", "dedup", "decontaminate", "check-documents", "tokenizer", "tokenize", "check-tokens",
    "label",
}  # fmt: skip


@dataclass(frozen=True)
class Story:
    """A flow that takes (spec, night). flow, report: `module:name`, of the flow and of the model of what it returns.
    show: prints such a report."""

    flow: str
    report: str
    show: Callable[[Console, Any], None]


def run_here(spec: NamedSpec, night: str, story: Story, as_json: bool) -> int:
    """Run the flow and print its step table and result; as_json: one line on stdout at the end. Returns the exit code."""
    return run_nights(spec, [night], story, as_json)


def run_nights(spec: NamedSpec, nights: Sequence[str], story: Story, as_json: bool) -> int:
    """The same for several nights, one after the other, up to the first that fails."""
    started = time.monotonic()
    from flows.console import terminal

    workspace = Workspace.of(spec.name)
    require_free_disk(workspace.root)
    sweep_orphans()
    console = terminal(to_stderr=as_json)
    os.environ.update(client_environment(home()))
    with EmbeddedPrefect(home()) as server:  # its imports take seconds and overlap with ours, see docs/adr/0004
        assert "prefect" not in sys.modules, "prefect reads PREFECT_API_URL once, when it is imported"
        os.environ["PREFECT_API_URL"] = server.api_url
        for night in nights:
            console.print(f"[bold]nightmill[/bold] {spec.name}, night {night}, in {workspace.root}")
            report = _run(spec, night, story, console, started, server)
            _print(report, story, console, as_json)
            if report.status != "done":
                return 1
            started = time.monotonic()
    return 0


def run_or_plan(spec: NamedSpec, story: Story, arguments: argparse.Namespace) -> int:
    """What a command with --night, --json and --plan was asked for."""
    act = print_plan if arguments.plan else run_here
    return act(spec, parse_night(arguments.night), story, arguments.json)


def print_plan(spec: NamedSpec, night: str, story: Story, as_json: bool) -> int:
    """Print what `run_here` would do. Reads manifests only; writes nothing, starts nothing."""
    from flows.console import plan_table, terminal

    steps = planned_steps(spec, night, story.flow)
    told = forecast(Workspace.of(spec.name), steps)
    if as_json:
        line = {"night": night, "steps": [step.model_dump(mode="json") for step in steps]}
        print(json.dumps(line | {"forecast": told.model_dump(mode="json"), "fits": told.fits}))  # noqa: T201
    else:
        waiting = sum(step.state == "would run" for step in steps)
        title = f"night {night} of {spec.name}: {waiting} of {len(steps)} steps would run"
        terminal().print(plan_table(steps, told, title))
        terminal().print(describe_total(told), highlight=False)
        if not told.fits:
            terminal().print("[red]does not fit on this disk: a run would be refused[/red]")
    return 0


def planned_steps(spec: NamedSpec, night: str, flow: str) -> tuple[StepResult, ...]:
    """The same flow, walked by an engine that only looks."""
    with engine_in_use(Engine(Workspace.of(spec.name), night, planning=True)) as engine:
        _found(flow).fn(spec, night)
        return tuple(engine.results)


def _run(spec: NamedSpec, night: str, story: Story, console: Console, started: float, server: EmbeddedPrefect) -> Any:
    from flows.console import ConsoleObserver
    from flows.engines import engine_for

    planned = planned_steps(spec, night, story.flow)
    require_room(Workspace.of(spec.name), forecast(Workspace.of(spec.name), planned))
    work_left = any(step.state == "would run" for step in planned)
    with engine_for(spec, night, ConsoleObserver(console), tracked=work_left) as engine:
        _start_early(engine, planned)
        server.wait()
        try:
            report = _found(story.flow)(spec, night)
        except Exception as error:
            kind = _found(story.report)
            failed = kind(status="failed", night=night, steps=tuple(engine.results), decision=str(error))
            _print(failed.model_copy(update={"seconds": time.monotonic() - started}), story, console, as_json=False)
            raise
    return report.model_copy(update={"seconds": round(time.monotonic() - started, 1)})


def _found(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _start_early(engine: Engine, planned: tuple[StepResult, ...]) -> None:
    """Begin the imports of the child processes that this run will need while the Prefect server still starts."""
    waiting = {step.step for step in planned if step.state == "would run"}
    if waiting & SPARK_STEPS:
        engine.applications["spark"].start()
    if waiting - SPARK_STEPS:
        engine.applications["torch"].start()


def _print(report: Any, story: Story, console: Console, as_json: bool) -> None:
    story.show(console, report)
    if as_json:
        print(report.model_dump_json())  # noqa: T201
