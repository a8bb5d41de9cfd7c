"""How a process gets its engine: steps as Prefect tasks, watched by MLflow and the Prefect artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tasks.artifacts import ArtifactObserver
from tasks.engine import Engine, Observer, engine_in_use, engine_or_none
from tasks.flow_runs import claim_flow_run
from tasks.machine import require_free_disk
from tasks.prefect_runner import run_as_task, run_log
from tasks.redaction import redact_logs
from tasks.tracking import Status
from tasks.tracking_observer import TrackingObserver, open_tracking
from tasks.workspace import Workspace, parse_night


class NamedSpec(Protocol):
    """A spec of anything that runs in a workspace of its own."""

    @property
    def name(self) -> str: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


@contextmanager
def engine_open(spec: NamedSpec, night: str) -> Iterator[Engine]:
    """The engine around us (a plan, or `nightmill` at a terminal), or one of our own for this flow run."""
    outer = engine_or_none()
    if outer is not None:
        yield outer
        return
    with engine_for(spec, parse_night(night)) as engine:
        yield engine


@contextmanager
def engine_for(
    spec: NamedSpec, night: str, *observers: Observer, whole_night: bool = True, tracked: bool = True
) -> Iterator[Engine]:
    """An engine for real work, in use until this ends; then its child processes are gone and MLflow's runs are ended.

    whole_night: this process runs the night from end to end, not one sub-flow of it. tracked: off when nothing will run,
    because importing mlflow would be most of such a run.
    Raises: DiskFull if there is no room to begin.
    """
    redact_logs()
    claim_flow_run()
    workspace = Workspace.of(spec.name)
    require_free_disk(workspace.root)
    tracking = (
        TrackingObserver(open_tracking(workspace), night, spec.model_dump(mode="json"), outermost=whole_night)
        if tracked
        else None
    )
    watching = (*observers, ArtifactObserver(), *([tracking] if tracking else []))
    status: Status = "KILLED"
    try:
        with engine_in_use(Engine(workspace, night, run_as_task, watching, on_line=run_log)) as engine:
            yield engine
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        if tracking:
            tracking.close(status)
