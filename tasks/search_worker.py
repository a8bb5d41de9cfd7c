"""The engine of a Dask worker's process: it runs trials with a torch application that outlives each of them.

The application is started by the worker's first trial and serves the following ones. It dies with the worker, whose death
the kernel reports to it (see tasks/child.py); the next worker finds the trial's scratch folder and goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import psutil

from spark_jobs.manifests import Frozen, Handle
from tasks.application import Application, AppName
from tasks.engine import Engine
from tasks.steps import Step
from tasks.workspace import Workspace
from training.search_spec import TrialSpec


class WorkerJob(Frozen):
    """A step as it is sent to a worker. root: the workspace, on a disk that all workers see. key: of the step, as the flow's own
    code and libraries make it."""

    name: str
    key: str
    root: str
    night: str


class TrialJob(WorkerJob):
    """labelled, base: addresses."""

    labelled: str
    base: str
    spec: TrialSpec


class TrialWorkspace(Workspace):
    """A workspace whose night's record is left alone: trials are found by address, and many processes run them at once."""

    def remember(self, night: str, step: str, handle: Handle) -> None:
        pass


class WorkerEngine(Engine):
    """An engine that leaves the worker's applications running when it is done."""

    def __init__(self, workspace: Workspace, night: str, applications: dict[AppName, Application]) -> None:
        super().__init__(workspace, night)
        self.applications = applications

    def inside(self, workspace: Workspace) -> Self:
        """One for another workspace, with the same applications."""
        return type(self)(workspace, self.night, self.applications)

    def close(self) -> None:
        pass

    def _family_of(self, step: Step[Any]) -> Callable[[], list[psutil.Process]]:
        return lambda: [psutil.Process(), *self.applications["torch"].family()]
