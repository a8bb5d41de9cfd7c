"""`nightmill finetune`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.console import step_table
from flows.finetune_specs import load_finetune_spec
from flows.local_run import Story, run_or_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flows.finetune import FinetuneReport
    from training.metrics.score import Score


def finetune(arguments: argparse.Namespace) -> int:
    """Run a fine-tuning in this process tree; with --plan only say which steps would run, and why."""
    return run_or_plan(load_finetune_spec(arguments.preset, arguments.settings), FINETUNE, arguments)


def print_finetune(console: Console, report: FinetuneReport) -> None:
    console.print()
    console.print(step_table(report.steps, f"night {report.night}: {report.status} in {report.seconds:.0f} s"))
    if report.scores:
        console.print(score_table(report.scores, report.task))
    if report.folder:
        console.print(f"model: {report.folder}", soft_wrap=True, highlight=False)
    if report.decision:
        console.print(report.decision)


def score_table(scores: Mapping[str, Score], title: str) -> Table:
    """Every metric with its 95 % interval."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    for name in ("value", "low", "high", "n", "invalid"):
        table.add_column(name, justify="right")
    for name, score in scores.items():
        numbers = (f"{value:.4f}" for value in (score.value, score.low, score.high))
        table.add_row(name, *numbers, f"{score.n:,}", f"{score.n_invalid:,}")
    return table


FINETUNE = Story("flows.finetune:finetune", "flows.finetune:FinetuneReport", print_finetune)
