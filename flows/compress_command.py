"""`nightmill compress`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.console import step_table
from flows.local_run import Story, print_plan, run_here
from flows.specs import NightlySpec, load_spec
from spark_jobs.errors import RequestError
from tasks.workspace import Workspace, parse_night

if TYPE_CHECKING:
    from flows.compress_model import CompressReport


def compress(arguments: argparse.Namespace) -> int:
    """Compress the model of a night in this process tree; with --plan only say which steps would run, and why."""
    spec = load_spec(arguments.preset, arguments.settings)
    if not spec.compress.recipes:
        raise RequestError("compress.recipes is empty: name some, for example --set compress.recipes=[int8,int4]")
    night = parse_night(arguments.night) if arguments.night else newest_model(spec)
    act = print_plan if arguments.plan else run_here
    return act(spec, night, COMPRESS, arguments.json)


def newest_model(spec: NightlySpec) -> str:
    """The newest night that exported a model. Raises: RequestError if none has."""
    workspace = Workspace.of(spec.name)
    nights = [n for n in workspace.nights() if "export" in workspace.record(n).outputs]
    if not nights:
        raise RequestError(
            f"pipeline {spec.name} has no model yet in {workspace.root}: `nightmill run` it first, or name another preset"
        )
    return nights[-1]


def print_compress(console: Console, report: CompressReport) -> None:
    console.print()
    console.print(step_table(report.steps, f"night {report.night}: {report.status} in {report.seconds:.0f} s"))
    if report.candidates:
        console.print(candidate_table(report))
    if report.decision:
        console.print(f"best: {report.best}. {report.decision}" if report.best else report.decision)
    if report.choice:
        console.print(f"table and picture: {report.choice}", soft_wrap=True, highlight=False)


def candidate_table(report: CompressReport) -> Table:
    """By bytes on disk; the best one is bold, those that may lose too much are dim."""
    table = Table(title="candidates", title_justify="left", box=None, pad_edge=False)
    table.add_column("model")
    for name in ("bytes", "bits", "memory, MB", "prefill/s", "decode/s", "bits per byte", "loss", "at most"):
        table.add_column(name, justify="right")
    for row in sorted(report.candidates, key=lambda row: (row["weight_bytes"], row["name"])):
        style = "bold" if row["name"] == report.best else "" if row["within_budget"] else "dim"
        table.add_row(
            row["name"], f"{row['weight_bytes']:,}", f"{row['effective_bits']:.3f}", f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['prefill_tokens_per_s']:,.0f}", f"{row['decode_tokens_per_s']:,.1f}",
            f"{row['bits_per_byte']:.4f}", signed(row["loss"]), signed(row["loss_upper"]), style=style,
        )  # fmt: skip
    return table


def signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"


COMPRESS = Story("flows.compress_model:compress_model", "flows.compress_model:CompressReport", print_compress)
