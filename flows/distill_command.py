"""`nightmill distill`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.console import step_table
from flows.distill_specs import load_distill_spec
from flows.local_run import Story, run_or_plan

if TYPE_CHECKING:
    from flows.distill import Contestant, DistillReport


def distill(arguments: argparse.Namespace) -> int:
    """Run a distillation in this process tree; with --plan only say which steps would run, and why."""
    return run_or_plan(load_distill_spec(arguments.preset, arguments.settings), DISTILL, arguments)


def print_distill(console: Console, report: DistillReport) -> None:
    console.print()
    console.print(step_table(report.steps, f"night {report.night}: {report.status} in {report.seconds:.0f} s"))
    if report.student is not None and report.teacher is not None:
        console.print(both_table(report.student, report.teacher, report.task))
        console.print(f"student: {report.student.folder}", soft_wrap=True, highlight=False)
    if report.difference is not None:
        told = report.difference
        p = "" if told.mcnemar_p is None else f", McNemar p {told.mcnemar_p:.3g}"
        console.print(f"student - teacher, {told.metric}: {told.value:+.4f} [{told.low:+.4f}, {told.high:+.4f}]{p}")
    if report.decision:
        console.print(report.decision)


def both_table(student: Contestant, teacher: Contestant, title: str) -> Table:
    """Sizes, and every metric of both with its 95 % interval."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("", "student", "teacher"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("parameters", f"{student.num_parameters:,}", f"{teacher.num_parameters:,}")
    table.add_row("bytes", f"{student.weight_bytes:,}", f"{teacher.weight_bytes:,}")
    for name in student.scores:
        told = (one.scores[name] for one in (student, teacher))
        table.add_row(name, *(f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]" for score in told))
    return table


DISTILL = Story("flows.distill:distill", "flows.distill:DistillReport", print_distill)
