"""The process that `benchmarks.chaos` kills: it runs the real night with real child processes, up to a given step.

Nothing in the product knows of it. Moments inside a step are met from outside: the start is told to every observer; files are
seen on the disk; the rename that publishes an output, and what follows it, are seen by Python's audit hook.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from flows.nightly import nightly
from flows.specs import NightlySpec
from spark_jobs.errors import JobCrashed, StepBusy
from spark_jobs.manifests import Handle
from tasks.application import Application, AppName
from tasks.child import sweep_orphans
from tasks.engine import Engine, StepResult, engine_in_use
from tasks.steps import Step
from tasks.workspace import Workspace

Moment = Literal["before start", "mid-write", "after write", "after commit"]
Victim = Literal["flow", "worker", "its child", "disk"]
POLL_S = 0.0005
RETRY_S = 0.1  # Prefect waits 2 s and 10 s


@dataclass(frozen=True)
class Kill:
    """One kill. worker: the application (driver of Spark; the process that forks ranks); its child: JVM, or youngest rank.

    disk: nobody dies, but from the start of the step its disk has room for `room` bytes more: half of what it writes.
    """

    step: str
    moment: Moment
    victim: Victim
    signal: Literal["SIGKILL", "SIGTERM", "ENOSPC"]
    room: int = 0

    def __str__(self) -> str:
        if self.victim == "disk":
            return f"disk full, {self.moment} of {self.step}"
        return f"{self.signal} to {self.victim}, {self.moment} of {self.step}"


def leave_room(disk: Path, num_bytes: int) -> None:
    """Make a tmpfs so small that `num_bytes` more fit."""
    found = os.statvfs(disk)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    size = max(used + num_bytes // found.f_frsize * found.f_frsize, found.f_frsize)  # 0 would mean: no limit
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


class Enough(BaseException):
    """The step that was asked for is done: the rest of the night is not run."""


class Trap:
    """Sends the signal at the moment. An observer of steps, and an audit hook of this process."""

    def __init__(self, kill: Kill | None, workspace: Workspace, application: Callable[[AppName], Application]) -> None:
        self.kill, self._workspace, self._application = kill, workspace, application
        self.sprung = ""  # name of the process that got the signal
        self.retries = 0
        self._step: Step[Any] | None = None
        self._attempt = ""
        self._has_written = self._has_renamed = False

    def step_started(self, step: Step[Any], why: str) -> None:
        if self.kill is None or step.name != self.kill.step or self.sprung:
            return
        self._attempt = str(self._workspace.attempt(f"{step.name}-{step.key()}"))
        self._step = step
        if self.kill.victim == "disk":
            self.sprung = "disk"
            leave_room(self._workspace.root.parent, self.kill.room)
        elif self.kill.moment == "before start":
            self._spring()
        elif self.kill.moment == "mid-write" and step.app != "inline":
            threading.Thread(target=self._spring_when_written, daemon=True).start()

    def step_event(self, step: Step[Any], event: dict[str, Any]) -> None: ...

    def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None: ...

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by Python before each file operation of this process."""
        if self._step is None or self.kill is None or self.sprung:
            return
        if event == "os.rename" and os.fspath(arguments[0]) == self._attempt:
            self._has_renamed = True
            if self.kill.moment == "after write":
                self._spring()
        elif self._has_renamed and self.kill.moment == "after commit":
            self._spring()
        elif self.kill.moment == "mid-write" and self._step.app == "inline":
            if self._has_written:
                self._spring()
            self._has_written = event == "open" and self._opens_for_writing(*arguments[:2])

    def _opens_for_writing(self, path: Any, mode: Any) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(self._attempt) and mode not in (None, "r", "rb")

    def _spring_when_written(self) -> None:
        """Wait for the first bytes below the attempt that were not there when the step began."""
        attempt, began = Path(self._attempt), time.time() - 0.01
        while not self.sprung and not self._has_renamed:
            with suppress(FileNotFoundError):
                for path in attempt.rglob("*"):
                    found = path.stat()
                    if path.is_file() and found.st_size > 0 and found.st_mtime >= began:
                        self._spring()
                        return
            time.sleep(POLL_S)

    def _spring(self) -> None:
        assert self.kill is not None
        assert self._step is not None
        number = signal.Signals[self.kill.signal]
        self.sprung = (
            self.kill.victim
        )  # now: looking for the victim opens files, which the audit hook is told of as well
        if self.kill.victim == "flow":
            os.kill(os.getpid(), number)
            return
        app = self._application("torch" if self._step.app == "inline" else self._step.app)
        family = app.family()
        if not family:  # not started yet: it is to die when it has begun
            app.start()
            family = app.family()
        victim = family[0] if self.kill.victim == "worker" else _child_of(family)
        self.sprung = victim.name()
        with suppress(psutil.NoSuchProcess):
            victim.send_signal(number)


def _child_of(family: list[psutil.Process]) -> psutil.Process:
    """The JVM, or the youngest process: a rank while ranks work."""
    java = [process for process in family if "java" in process.name()]
    return java[0] if java else max(family, key=lambda p: (p.create_time(), p.pid))


class FlowProcess:
    """Runs parts of one night, as often as it is asked to. Its applications stay warm in between, as between nights."""

    def __init__(self, spec: NightlySpec, night: str) -> None:
        self.spec, self.night = spec, night
        self.workspace = Workspace.of(spec.name)
        first = Engine(self.workspace, night)
        self.applications: dict[AppName, Application] = first.applications
        self.trap = Trap(None, self.workspace, self.applications.__getitem__)
        sys.addaudithook(lambda event, arguments: self.trap.audit(event, arguments))
        signal.signal(signal.SIGTERM, _terminated)

    def start(self, app: str) -> None:
        """Begin the imports of an application that will be asked for."""
        if app in self.applications:
            self.applications[app].start()  # type: ignore[index]

    def run(self, until: str, kill: Kill | None) -> dict[str, Any]:
        """The night up to and with step `until`. Returns what ran and what was killed on the way."""
        sweep_orphans()
        self.trap = Trap(kill, self.workspace, self.applications.__getitem__)
        engine = Engine(self.workspace, self.night, runner=self._runner(until), observers=(self.trap,))
        engine.applications = self.applications
        engine.close = lambda: None  # type: ignore[method-assign]  # `close` of this object does it
        with suppress(Enough), engine_in_use(engine):
            nightly.fn(self.spec, self.night)
        ran = [result.step for result in engine.results if result.state == "ran"]
        return {"ran": ran, "killed": self.trap.sprung, "retries": self.trap.retries}

    def close(self) -> None:
        for application in self.applications.values():
            application.close()

    def _runner(self, until: str) -> Callable[[Step[Any], Callable[[], StepResult]], StepResult]:
        def run_step(step: Step[Any], body: Callable[[], StepResult]) -> StepResult:
            """As tasks.prefect_runner does it, without a server."""
            result = None
            while result is None:
                try:
                    result = body()
                except (JobCrashed, StepBusy):
                    if self.trap.retries == 2:
                        raise
                    self.trap.retries += 1
                    time.sleep(RETRY_S)
            if step.name == until:
                raise Enough
            return result

        return run_step


def walk(spec: NightlySpec, night: str, before: Callable[[Step[Any]], None]) -> list[dict[str, str]]:
    """An unbroken night; `before` is called when a step is about to work. Returns its steps, in order."""

    class Walker:
        def __init__(self) -> None:
            self.steps: list[dict[str, str]] = []

        def step_started(self, step: Step[Any], why: str) -> None:
            before(step)
            self.steps.append({"step": step.name, "app": step.app})

        def step_event(self, step: Step[Any], event: dict[str, Any]) -> None: ...

        def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None: ...

    walker = Walker()
    with engine_in_use(Engine(Workspace.of(spec.name), night, observers=(walker,))) as engine:
        engine.applications["torch"].start()
        nightly.fn(spec, night)
    return walker.steps


def _terminated(_number: int, _frame: Any) -> None:
    """What `nightmill` does at SIGTERM."""
    raise KeyboardInterrupt


def as_line(kill: Kill | None) -> dict[str, Any] | None:
    return None if kill is None else asdict(kill)
