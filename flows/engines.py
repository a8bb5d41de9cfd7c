"""How the outermost flow of a process gets its engine: steps as Prefect tasks, watched by MLflow and the artifacts."""

from __future__ import annotations

from tasks.engine import Engine, Observer
from tasks.machine import require_free_disk
from tasks.prefect_runner import run_as_task
from tasks.workspace import Workspace


def make_engine(workspace: Workspace, night: str, *observers: Observer) -> Engine:
    """An engine for real work. `observers` listen besides MLflow and the Prefect artifacts.

    Raises: DiskFull if there is no room to begin.
    """
    require_free_disk(workspace.root)
    return Engine(workspace, night, runner=run_as_task, observers=observers)
