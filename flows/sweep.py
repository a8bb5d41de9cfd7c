"""Runs, locks and processes of the dead are put right. Deployment `sweep`, every quarter of an hour; `nightmill status` does it too."""

from __future__ import annotations

from prefect import flow

from spark_jobs.manifests import Frozen
from tasks.artifacts import publish_markdown
from tasks.workspace import home
from tasks.zombies import Swept
from tasks.zombies import sweep as put_right


class SweepReport(Frozen):
    """What was put right; nothing is usual."""

    swept: tuple[Swept, ...] = ()


@flow(name="sweep")
def sweep() -> SweepReport:
    """Flow runs whose process is gone become Crashed, MLflow runs KILLED; locks and processes of the dead go."""
    report = SweepReport(swept=tuple(put_right(home())))
    if report.swept:
        publish_markdown("sweep", as_markdown(report), "What the dead had left")
    return report


def as_markdown(report: SweepReport) -> str:
    return "\n".join(
        ["| what | name | why |", "|---|---|---|", *(f"| {s.kind} | {s.name} | {s.what} |" for s in report.swept)]
    )
