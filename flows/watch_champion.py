"""Live traffic against what the champion was trained on. Deployment `watch-champion`, pool `cpu`, every 15 minutes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow

from flows.engines import engine_for
from flows.specs import NightlySpec
from flows.watch_line import WatchLine, line_of
from tasks.artifacts import publish_link, publish_markdown
from tasks.engine import engine_or_none
from tasks.watch_alarms import emit_to_prefect, tell_alarms
from tasks.watch_steps import Look, forget_old, look_at_traffic, watch_reference
from tasks.workspace import Workspace
from training.watch.page import number, probability, words_of

if TYPE_CHECKING:
    from training.manifests import ModelFolder, WatchReference


@flow(name="watch-champion", flow_run_name="{spec.name}")
def watch_champion(spec: NightlySpec) -> WatchLine:
    """Compare the traffic of the last window with the training snapshot of today's champion, and tell what is new.

    Args:
        spec: Which pipeline, and how it is watched; this flow reads `name` and `watch`.
    """
    workspace = Workspace.of(spec.name)
    now = datetime.now(UTC)
    found = look_at_traffic(workspace, spec.watch, now, lambda model: snapshot_of(spec, model))
    alarms = tell_alarms(workspace, found, spec.watch, emit_to_prefect)
    show(found)
    forget_old(workspace, spec.watch, now)
    return line_of(spec.name, found, tuple(alarm.name for alarm in alarms))


def snapshot_of(spec: NightlySpec, model: ModelFolder) -> WatchReference:
    """The champion's snapshot, as a step of the night that made the model."""
    if engine_or_none() is not None:
        return watch_reference(model, spec.watch.reference)
    with engine_for(spec, model.night, whole_night=False, tracked=False):
        return watch_reference(model, spec.watch.reference)


def show(found: Look) -> None:
    """Table and link in the Prefect UI."""
    if found.facts is None or found.report is None:
        return
    rows = [
        f"| {c.name} | {c.measure} | {number(c.value)} | {number(c.threshold)} | {probability(c.p_adjusted)} | {c.n:,} | {c.outcome} |"
        for c in found.facts.checks
    ]
    table = "\n".join(
        ("| check | measure | value | threshold | p | n | outcome |", "|---|---|---:|---:|---:|---:|---|", *rows)
    )
    publish_markdown("watch", table, f"Traffic until {found.facts.end}: {words_of(found.facts)}")
    page = Path(found.report.uri) / "data" / "page.html"
    publish_link("watch-page", page.as_uri(), f"traffic until {found.facts.end}", words_of(found.facts))
