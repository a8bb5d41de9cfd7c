"""What a person at the terminal sees: a line as each step ends, one live line while training, the table at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.artifacts import describe_forecast

if TYPE_CHECKING:  # nothing here may import prefect: `nightmill run` must first tell it where its server is
    from flows.report import NightReport
    from spark_jobs.manifests import Handle
    from tasks.engine import StepResult
    from tasks.forecast import Forecast
    from tasks.steps import Step

COLORS = {"ran": "green", "cached": "cyan", "failed": "red", "skipped": "yellow", "would run": "yellow"}


class ConsoleObserver:
    """Prints steps as they happen. `console` writes to stderr when stdout is for JSON."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_share = 0

    def step_started(self, step: Step[Any], why: str) -> None:
        self._last_share = 0
        self._console.print(Text.assemble(("  start   ", "bold"), f"{step.name:<18} ", (why, "dim")))

    def step_event(self, step: Step[Any], event: dict[str, Any]) -> None:
        if "incident" in event:
            told = event["incident"]
            self._console.print(
                Text(f"          step {told['step']} {told['action']}: {told['reason']}", style="yellow")
            )
        if "num_steps" not in event:
            return
        share = int(4 * event["step"] / event["num_steps"])
        if share > self._last_share:
            self._last_share = share
            self._console.print(
                Text(
                    f"          step {event['step']}/{event['num_steps']}  loss {event['loss']:.3f}  "
                    f"{event['tokens_per_s']:,.0f} tokens/s  {event['eta_s']:.0f} s left",
                    style="dim",
                )
            )

    def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None:
        self._console.print(
            Text.assemble((f"  {result.state:<8}", COLORS[result.state]), f"{step.name:<18} {result.seconds:6.1f} s")
        )

    def trial_scored(self, result: StepResult, told: str) -> None:
        """A training of a search; told: its score and values."""
        self._console.print(
            Text.assemble(
                (f"  {result.state:<8}", COLORS[result.state]),
                f"{result.step:<18} {result.seconds:6.1f} s  ",
                (told, "dim"),
            )
        )

    def night_page(self, page: Path) -> None:
        self._console.print(f"  page    {page}", soft_wrap=True, highlight=False)


def terminal(to_stderr: bool = False) -> Console:
    """A console that does not squeeze the step table when its output goes to a file or a log."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(stderr=to_stderr, width=None if stream.isatty() else 150)


def step_table(steps: tuple[StepResult, ...], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("state", no_wrap=True)
    table.add_column("step", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    table.add_column("output", overflow="fold")
    for line in steps:
        table.add_row(
            Text(line.state, style=COLORS[line.state]),
            line.step,
            f"{line.seconds:.1f}" if line.state == "ran" else "",
            f"{line.rows:,}" if line.rows is not None and line.rows >= 0 else "",
            line.why,
            line.output,
        )
    return table


def plan_table(steps: tuple[StepResult, ...], told: Forecast, title: str) -> Table:
    """Like `step_table`, with what each step that would run took before, in the middle of its newest runs."""
    expected = {line.step: line for line in told.steps}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("state", no_wrap=True)
    table.add_column("step", no_wrap=True)
    for name in ("seconds", "MB", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    table.add_column("output", overflow="fold")
    for line in steps:
        columns = describe_forecast(expected.get(line.step))
        told_line = [str(columns[name]) for name in ("seconds", "MB", "cost")]
        table.add_row(Text(line.state, style=COLORS[line.state]), line.step, *told_line, line.why, line.output)
    return table


def print_night(console: Console, report: NightReport) -> None:
    console.print()
    console.print(step_table(report.steps, f"night {report.night}: {report.status} in {report.seconds:.0f} s"))
    if report.metrics:
        bits = {k.removesuffix("_bits_per_byte"): v for k, v in report.metrics.items() if k.endswith("_bits_per_byte")}
        console.print("\nbits per byte on held-out text: " + "  ".join(f"{k} {v:.3f}" for k, v in sorted(bits.items())))
    if report.decision:
        console.print(f"gate: {report.decision}")
    if report.model:
        console.print(f"champion: {report.model.name} version {report.model.version} ({report.model.address})")
