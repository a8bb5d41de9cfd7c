"""`nightmill evaluate`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.console import step_table
from flows.evaluate_specs import load_evaluate_spec
from flows.local_run import Story, run_or_plan

if TYPE_CHECKING:
    from flows.evaluate_benchmarks import EvaluateReport
    from training.benchmarks.results import BenchmarkResult
    from training.metrics.score import Score


def evaluate(arguments: argparse.Namespace) -> int:
    """Ask a model its benchmarks in this process tree; with --plan only say which steps would run, and why."""
    return run_or_plan(load_evaluate_spec(arguments.preset, arguments.settings), EVALUATE, arguments)


def print_evaluate(console: Console, report: EvaluateReport) -> None:
    console.print()
    console.print(step_table(report.steps, f"night {report.night}: {report.status} in {report.seconds:.0f} s"))
    for name, result in report.results.items():
        console.print(benchmark_table(name, result))
        console.print(told_beside(result))
    if report.folder:
        console.print(f"items and scores: {report.folder}", soft_wrap=True, highlight=False)
    if report.decision:
        console.print(report.decision)


def benchmark_table(name: str, result: BenchmarkResult) -> Table:
    """Every metric with its 95 % interval, then the main one by slice."""
    table = Table(
        title=f"{name} ({result.kind}, version {result.version})", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("metric")
    for column in ("value", "low", "high", "n", "invalid"):
        table.add_column(column, justify="right")
    for metric, score in result.scores.items():
        table.add_row(metric, *_numbers(score), style="bold" if metric == result.main else "")
    for slice_name, values in result.slices.items():
        for value, score in values.items():
            table.add_row(f"{result.main}, {slice_name} {value}", *_numbers(score), style="dim")
    return table


def told_beside(result: BenchmarkResult) -> str:
    """Counts that are not 0, and what the corpus holds."""
    parts = [f"{count} {name}" for name, count in result.counts.items() if count]
    overlap = result.contamination
    if overlap is not None:
        parts.append(f"{overlap.num_contaminated} of {overlap.num_judged} stand in the training corpus")
        if overlap.clean is not None and overlap.contaminated is not None:
            parts.append(
                f"{result.main} {overlap.clean.value:.4f} without them, {overlap.contaminated.value:.4f} of them"
            )
    return "; ".join(parts) + "\n" if parts else ""


def _numbers(score: Score) -> tuple[str, ...]:
    return (*(f"{value:.4f}" for value in (score.value, score.low, score.high)), f"{score.n:,}", f"{score.n_invalid:,}")


EVALUATE = Story("flows.evaluate_benchmarks:evaluate", "flows.evaluate_benchmarks:EvaluateReport", print_evaluate)
