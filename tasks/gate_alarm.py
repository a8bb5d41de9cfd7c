"""A gate that keeps the champion is said as an event, `nightmill.gate.refused`, so that an automation can tell a person.

It is no failure: the night did what it is for. Ten in a row are news all the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from tasks.engine import Engine, is_planned
from training.manifests import Verdict

EVENT = "nightmill.gate.refused"
NAMESPACE = uuid.UUID("5c1a7e0e-6c64-4a08-8f0b-6d1f4f0c2b77")  # of event ids, any fixed one
Emit = Callable[..., Any]


def tell_refusal(engine: Engine, verdict: Verdict, emit: Emit | None = None) -> bool:
    """Emit the event if this run's gate kept a champion that there is. A cached verdict was told when it was made."""
    if is_planned(verdict) or verdict.decision != "keep" or not verdict.champion:
        return False
    if not any(result.step == "gate" and result.state == "ran" for result in engine.results):
        return False
    pipeline = engine.workspace.name
    (emit or _prefect())(
        EVENT,
        resource={"prefect.resource.id": f"nightmill.pipeline.{pipeline}", "prefect.resource.name": pipeline},
        payload={
            "pipeline": pipeline,
            "night": verdict.night,
            "candidate": verdict.candidate,
            "champion": verdict.champion,
            "verdict": verdict.address,
            "difference": verdict.difference,
            "message": f"{pipeline}: the candidate of night {verdict.night} does not replace the champion: {verdict.reason}",
        },
        id=uuid.uuid5(NAMESPACE, f"{engine.workspace.root}|{verdict.address}"),
    )
    return True


def _prefect() -> Emit:
    from prefect.events import emit_event

    return emit_event
