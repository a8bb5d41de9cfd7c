"""Alarms of the watch as Prefect events: one when an episode begins, one when it is over.

What is open stands in `<workspace>/watch.json`. An event is sent before the state is written, under an id that follows from
the episode: a watch that dies between the two sends it again, and the server takes it for the same event.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from tasks.locks import held
from tasks.watch_steps import LOCK_WAIT_S, Look
from tasks.workspace import Workspace, write_atomic
from training.watch.episodes import Alarm, Episodes, Sight, follow
from training.watch.page import words_of
from training.watch.report import sights
from training.watch.spec import WatchSpec

STATE = "watch.json"
NAMESPACE = uuid.UUID("0f3d6c5e-5f0b-4c6e-9a55-6b1f6f0d9a11")  # of event ids, any fixed one
Emit = Callable[[Alarm, dict[str, Any], uuid.UUID], None]


def tell_alarms(workspace: Workspace, found: Look, spec: WatchSpec, emit: Emit) -> list[Alarm]:
    """Follow the episodes by one look and send what is new, through `emit`."""
    with held(workspace.lock("watch"), LOCK_WAIT_S):
        seen: dict[str, Sight] = {"silent": found.silent} | (sights(found.facts) if found.facts else {})
        state, alarms = follow(read_state(workspace), seen, found.end.isoformat(), spec.resolve_windows)
        for alarm in alarms:
            emit(alarm, facts_of(workspace, found, alarm), uuid.uuid5(NAMESPACE, _name(workspace, alarm)))
        write_atomic(workspace.root / STATE, state.model_dump_json(indent=1) + "\n")
        return alarms


def read_state(workspace: Workspace) -> Episodes:
    """What is open; nothing where the file is missing or damaged: then what still lasts is told once more."""
    try:
        return Episodes.model_validate_json((workspace.root / STATE).read_text())
    except (FileNotFoundError, ValidationError):
        return Episodes()


def facts_of(workspace: Workspace, found: Look, alarm: Alarm) -> dict[str, Any]:
    """The payload: what is different, by how much, in how many requests, and where to look."""
    told: dict[str, Any] = {
        "pipeline": workspace.name,
        "checks": list(alarm.checks),
        "since": alarm.since,
        "start": found.start.isoformat(),
        "end": found.end.isoformat(),
        "status": found.status,
    }
    if found.facts is None or found.report is None:
        return told | {"message": f"{workspace.name}: no server has answered since before {alarm.since}"}
    over = "is over" if alarm.name.endswith(".resolved") else words_of(found.facts)
    return told | {
        "model": found.facts.model,
        "requests": found.facts.num_requests,
        "errors": found.facts.num_errors,
        "page": f"{found.report.uri}/data/page.html",
        "values": {
            check.name: {
                "measure": check.measure, "value": round(check.value, 4), "threshold": round(check.threshold, 4),
                "p_adjusted": check.p_adjusted, "n": check.n,
            }
            for check in found.facts.checks if check.name in alarm.checks and check.value == check.value
        },
        "message": f"{workspace.name}: {', '.join(alarm.checks)} {over}",
    }  # fmt: skip


def emit_to_prefect(alarm: Alarm, payload: dict[str, Any], event_id: uuid.UUID) -> None:
    from prefect.events import emit_event

    resource = {
        "prefect.resource.id": f"nightmill.pipeline.{payload['pipeline']}",
        "prefect.resource.name": payload["pipeline"],
    }
    emit_event(alarm.name, resource=resource, payload=payload, id=event_id)


def _name(workspace: Workspace, alarm: Alarm) -> str:
    return f"{workspace.root}|{alarm.name}|{','.join(alarm.checks)}|{alarm.since}"
