"""Nights that never happened, made up for: one after the other, oldest first. Deployment `backfill`.

Nights of one pipeline build on one another (documents are compared with all earlier ones, training goes on from the champion), so
they never run side by side; those of different pipelines may, each in a run of its own.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.night_range import nights_between
from flows.nightly import nightly
from flows.report import NightReport
from flows.specs import NightlySpec
from spark_jobs.manifests import Frozen
from tasks.artifacts import publish_markdown
from tasks.flow_runs import claim_flow_run


class BackfillReport(Frozen):
    """What a backfill did: one line a night, with what became of its candidate."""

    status: str = "done"
    nights: tuple[NightReport, ...] = ()


@flow(name="backfill", flow_run_name="{spec.name} {first} to {last}")
def backfill(spec: NightlySpec, first: str, last: str = "") -> BackfillReport:
    """Run every night from `first` to `last`, oldest first. A finished night is not run again; a failed one ends the backfill.

    A candidate of a night before the newest decision is registered, but never becomes champion.

    Args:
        spec: What to do in each night.
        first: Oldest night, as YYYY-MM-DD.
        last: Newest night, as YYYY-MM-DD, not later than today (UTC). Empty: yesterday.
    """
    claim_flow_run()
    reports: list[Any] = []
    for night in nights_between(first, last):
        reports.append(nightly(spec, night))
        publish_markdown("backfill", as_markdown(reports), f"Nights of {spec.name} made up for")
    return BackfillReport(nights=tuple(reports))


def as_markdown(reports: list[Any]) -> str:
    lines = ["| night | status | steps run | steps found | decision |", "|---|---|---|---|---|"]
    for report in reports:
        states = [step.state for step in report.steps]
        ran, found = states.count("ran"), states.count("cached")
        lines.append(f"| {report.night} | {report.status} | {ran} | {found} | {report.decision} |")
    return "\n".join(lines)
