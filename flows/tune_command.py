"""`nightmill tune`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows.console import step_table
from flows.finetune_command import FINETUNE, score_table
from flows.local_run import Story, run_or_plan
from flows.trials import known_trials
from flows.tune_specs import TuneRunSpec, load_tune_spec
from spark_jobs.errors import RequestError
from tasks.workspace import parse_night

if TYPE_CHECKING:
    from flows.finetune_specs import FinetuneRunSpec
    from flows.tune import TuneReport


def tune(arguments: argparse.Namespace) -> int:
    """Run a search in this process tree; with --plan only say what would run; with --trial train one of its trials alone."""
    spec = load_tune_spec(arguments.preset, arguments.settings)
    if arguments.trial is not None:
        alone = trial_alone(spec, parse_night(arguments.night), arguments.trial)
        return run_or_plan(alone, FINETUNE, arguments)
    return run_or_plan(spec, TUNE, arguments)


def trial_alone(spec: TuneRunSpec, night: str, number: int) -> FinetuneRunSpec:
    """The fine-tuning of a trial. Raises: RequestError if the search has not come to it."""
    trials = known_trials(spec, night)
    if number not in range(len(trials)):
        raise RequestError(
            f"--trial {number}: of this search, trials {f'0 to {len(trials) - 1}' if trials else '(none)'} are known; run "
            "`nightmill tune` with the same preset and settings first"
        )
    return spec.with_values(trials[number].values)


def print_tune(console: Console, report: TuneReport) -> None:
    console.print()
    console.print(step_table(report.steps, f"night {report.night}: {report.status} in {report.seconds:.0f} s"))
    if report.trials:
        console.print(trial_table(report))
    if report.scores:
        console.print(score_table(report.scores, f"{report.task}, best trial alone"))
    if report.best is not None:
        told = {
            True: "gave the same bytes as in the search",
            False: "gave OTHER bytes than in the search",
            None: "saw all of the training split, so it is no fold's model",
        }
        console.print(f"best: trial {report.best.number}; trained alone it {told[report.reproduced]}")
        console.print(f"again: nightmill finetune {report.search}/best.yaml", soft_wrap=True, highlight=False)
        console.print(f"model: {report.folder}", soft_wrap=True, highlight=False)
    if report.decision:
        console.print(report.decision)


def trial_table(report: TuneReport) -> Table:
    """A row a trial: what was varied, its score with interval, what became of it."""
    table = Table(title=f"trials by {report.metric}", title_justify="left", box=None, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("state")
    for path in report.trials[0].values:
        table.add_column(path.rpartition(".")[2], justify="right")
    for name in ("score", "low", "high"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    best = report.best.number if report.best else -1
    for trial in report.trials:
        score = trial.stages[-1] if trial.stages else None
        numbers = ("" if value is None else f"{value:.4f}" for value in (score, trial.low, trial.high))
        table.add_row(
            f"{'* ' if trial.number == best else ''}{trial.number}", trial.state,
            *(f"{value:g}" if isinstance(value, float) else str(value) for value in trial.values.values()),
            *numbers, trial.why,
        )  # fmt: skip
    return table


TUNE = Story("flows.tune:tune", "flows.tune:TuneReport", print_tune)
