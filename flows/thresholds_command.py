"""`nightmill report thresholds`: what each candidate threshold of each quality rule would remove from a night's documents."""

from __future__ import annotations

import argparse
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console import terminal
from flows.report_command import chosen_night
from flows.specs import load_spec
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Documents
from spark_jobs.requests import Request
from spark_jobs.specs import CleanSpec
from tasks.application import Application
from tasks.data_steps import classifier_step
from tasks.steps import find
from tasks.workspace import Workspace

DEADLINE_S = 24 * 3600.0


def report_thresholds(arguments: argparse.Namespace) -> int:
    """Print one table a rule. Raises: RequestError if the night has no documents."""
    spec = load_spec(arguments.preset, arguments.settings)
    workspace = Workspace.of(spec.name)
    night = chosen_night(workspace, arguments.night)
    documents = workspace.output(night, "ingest", Documents, "prepare-corpus")
    inputs = {"documents": documents.uri} | _classifier(spec.clean, night, workspace)
    application = Application("spark", workspace.root / "logs" / night)
    with tempfile.TemporaryDirectory(dir=workspace.root) as folder:
        request = Request(
            job="thresholds", spec=spec.clean.model_dump(mode="json"), inputs=inputs, out=folder, night=night
        )  # fmt: skip
        try:
            application.ask(request, DEADLINE_S, lambda event: None)
        finally:
            application.close()
        rows = _read(Path(folder))
    print_tables(terminal(), rows, f"night {night} of {spec.name}: {documents.num_rows:,} documents ingested")
    return 0


def _classifier(spec: CleanSpec, night: str, workspace: Workspace) -> dict[str, str]:
    """The classifier of `spec`, if it asks for one. Raises: RequestError if no night has trained it."""
    step = classifier_step(spec, night)
    if step is None:
        return {}
    found, why = find(step, workspace)
    if found is None:
        raise RequestError(f"clean.classifier: not trained in {workspace.root} yet ({why}); run a night with it first")
    return {"classifier": found.uri}


def _read(folder: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return parquet.read_table(folder / "data/part-00000.parquet").to_pylist()  # type: ignore[no-any-return]


def print_tables(console: Console, rows: list[dict[str, Any]], title: str) -> None:
    console.print(f"{title}; what each threshold would remove alone, [bold]*[/bold] the one in the spec")
    for rule, candidates in groupby(rows, key=lambda row: row["rule"]):
        lines = list(candidates)
        state = "" if lines[0]["is_on"] else " (off)"
        table = Table(title=f"{rule}{state}, {lines[0]['bound']}", title_justify="left", box=None, pad_edge=False)
        for name in ("threshold", "documents", "share", "bytes", "share of bytes"):
            table.add_column(name, justify="right", no_wrap=True)
        for line in lines:
            table.add_row(
                Text(f"{'*' if line['is_chosen'] else ' '} {line['threshold']:g}"),
                f"{line['num_documents']:,}", _share(line["num_documents"], line["of_documents"]),
                f"{line['num_bytes']:,}", _share(line["num_bytes"], line["of_bytes"]),
            )  # fmt: skip
        console.print(table)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""
