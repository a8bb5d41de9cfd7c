"""`nightmill run PRESET --dry-run`: the plan, and what training would need. Reads manifests; starts and writes nothing."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.table import Table

from flows.specs import load_spec
from tasks.forecast import forecast
from tasks.workspace import Workspace, parse_night

UNITS = ("B", "kB", "MB", "GB", "TB")


def dry_run(arguments: argparse.Namespace) -> int:
    """Print which steps would run, and the estimate of memory and FLOPs; with --json, one line of both."""
    from flows.console import plan_table, terminal
    from flows.local_run import planned_steps
    from flows.run_command import NIGHTLY
    from training.pretrain.estimate import estimate

    spec, night = load_spec(arguments.preset, arguments.settings), parse_night(arguments.night)
    steps = planned_steps(spec, night, NIGHTLY.flow)
    expected = forecast(Workspace.of(spec.name), steps)
    told = estimate(spec.train, spec.tokenizer.vocab_size, spec.tokenize.seq_len)
    if arguments.json:
        plan = {"night": night, "steps": [step.model_dump(mode="json") for step in steps], "train": told}
        print(json.dumps(plan | {"forecast": expected.model_dump(mode="json"), "fits": expected.fits}))  # noqa: T201
        return 0
    console = terminal()
    waiting = sum(step.state == "would run" for step in steps)
    console.print(
        plan_table(steps, expected, f"night {night} of {spec.name}: {waiting} of {len(steps)} steps would run")
    )
    console.print(estimate_table(told, spec.train.ranks))
    return 0


def estimate_table(told: dict[str, Any], ranks: int) -> Table:
    table = Table(title="training from scratch", title_justify="left")
    table.add_column("what")
    table.add_column("how much", justify="right")
    table.add_row("parameters", f"{told['parameters']:,}")
    table.add_row("tokens, at most", f"{told['tokens']:,}")
    table.add_row("FLOPs a token", f"{told['flops_per_token']:.3g}")
    table.add_row("FLOPs", f"{told['flops']:.3g}")
    table.add_row(f"hours of {told['device']} at 40% MFU", f"{told['device_hours']:.3g}")
    for name, size in told["memory"].items():
        table.add_row(f"memory of each of {ranks} ranks: {name}", in_bytes(size))
    return table


def in_bytes(size: float) -> str:
    for unit in UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {UNITS[-1]}"
