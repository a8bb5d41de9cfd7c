"""`nightmill report night`: the page of a night, of one that failed or is still running too. `nightmill report evaluation`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.specs import load_spec
from spark_jobs.errors import RequestError
from tasks.night_page import write_page
from tasks.workspace import Workspace, parse_night
from training.manifests import EvaluationReport


def report_night(arguments: argparse.Namespace) -> int:
    """Print the path of the page. Raises: RequestError if the night has no record."""
    workspace = Workspace.of(load_spec(arguments.preset, []).name)
    print(write_page(workspace, chosen_night(workspace, arguments.night)))  # noqa: T201
    return 0


def report_of_evaluation(arguments: argparse.Namespace) -> int:
    """Print the path of the report. Raises: RequestError if the night has none."""
    workspace = Workspace.of(load_spec(arguments.preset, []).name)
    night = chosen_night(workspace, arguments.night)
    report = workspace.output(night, "report-evaluation", EvaluationReport, "evaluate-model")
    print(Path(report.folder()) / "report.html")  # noqa: T201
    return 0


def chosen_night(workspace: Workspace, asked: str) -> str:
    """The night asked for, or the newest. Raises: RequestError if it has no record."""
    nights = sorted(path.stem for path in (workspace.root / "nights").glob("*.json"))
    night = parse_night(asked) if asked else next(reversed(nights), "")
    if night not in nights:
        known = f"it has {', '.join(nights[-5:])}" if nights else "it has none yet"
        raise RequestError(f"night {night or 'newest'} of {workspace.name}: no record in {workspace.root}; {known}")
    return night
