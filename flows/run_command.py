"""`nightmill run` and `nightmill plan`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console

from flows.specs import NightlySpec, load_spec
from tasks.child import sweep_orphans
from tasks.engine import Engine, StepResult, engine_in_use
from tasks.machine import require_free_disk
from tasks.servers import EmbeddedPrefect, client_environment
from tasks.workspace import Workspace, home, parse_night

if TYPE_CHECKING:
    from flows.report import NightReport

SPARK_STEPS = {
    "ingest", "classifier", "clean", "dedup", "decontaminate", "check-documents", "tokenizer", "tokenize", "check-tokens",
}  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Run a night in this process tree and print its step table; with --json, one line on stdout at the end."""
    started = time.monotonic()
    from flows.console import terminal

    spec = load_spec(arguments.preset, arguments.settings)
    night = parse_night(arguments.night)
    workspace = Workspace.of(spec.name)
    require_free_disk(workspace.root)
    sweep_orphans()
    console = terminal(to_stderr=arguments.json)
    console.print(f"[bold]nightmill[/bold] {spec.name}, night {night}, in {workspace.root}")
    os.environ.update(client_environment(home()))
    with EmbeddedPrefect(home()) as server:  # its imports take seconds and overlap with ours, see docs/adr/0004
        assert "prefect" not in sys.modules, "prefect reads PREFECT_API_URL once, when it is imported"
        os.environ["PREFECT_API_URL"] = server.api_url
        report = _run_night(spec, night, console, started, server)
    _print(report, console, arguments.json)
    return 0 if report.status == "done" else 1


def plan(arguments: argparse.Namespace) -> int:
    """Print what `run` would do. Reads manifests only; writes nothing, starts nothing."""
    from flows.console import step_table, terminal

    spec = load_spec(arguments.preset, arguments.settings)
    night = parse_night(arguments.night)
    steps = planned_steps(spec, night)
    if arguments.json:
        print(json.dumps({"night": night, "steps": [step.model_dump(mode="json") for step in steps]}))  # noqa: T201
    else:
        waiting = sum(step.state == "would run" for step in steps)
        terminal().print(step_table(steps, f"night {night} of {spec.name}: {waiting} of {len(steps)} steps would run"))
    return 0


def planned_steps(spec: NightlySpec, night: str) -> tuple[StepResult, ...]:
    """The same flow, walked by an engine that only looks."""
    from flows.nightly import nightly

    with engine_in_use(Engine(Workspace.of(spec.name), night, planning=True)) as engine:
        nightly.fn(spec, night)
        return tuple(engine.results)


def _run_night(spec: NightlySpec, night: str, console: Console, started: float, server: EmbeddedPrefect) -> NightReport:
    from flows.console import ConsoleObserver
    from flows.engines import engine_for
    from flows.nightly import nightly
    from flows.report import NightReport

    planned = planned_steps(spec, night)
    work_left = any(step.state == "would run" for step in planned)
    with engine_for(spec, night, ConsoleObserver(console), tracked=work_left) as engine:
        _start_early(engine, planned)
        server.wait()
        try:
            report = nightly(spec, night)
        except Exception as error:
            failed = NightReport(status="failed", night=night, steps=tuple(engine.results), decision=str(error))
            _print(failed.model_copy(update={"seconds": time.monotonic() - started}), console, as_json=False)
            raise
    return report.model_copy(update={"seconds": round(time.monotonic() - started, 1)})


def _start_early(engine: Engine, planned: tuple[StepResult, ...]) -> None:
    """Begin the imports of the child processes that this night will need while the Prefect server still starts."""
    waiting = {step.step for step in planned if step.state == "would run"}
    if waiting & SPARK_STEPS:
        engine.applications["spark"].start()
    if waiting - SPARK_STEPS:
        engine.applications["torch"].start()


def _print(report: NightReport, console: Console, as_json: bool) -> None:
    from flows.console import print_night

    print_night(console, report)
    if as_json:
        print(report.model_dump_json())  # noqa: T201
