"""The one mechanism that runs every step: look -> lock -> attempt -> job in a child process -> verify -> publish -> report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import psutil

from spark_jobs.errors import DiskFull, NightmillError
from spark_jobs.manifests import Frozen, Handle
from spark_jobs.requests import Outcome, Request, is_disk_full
from tasks.application import Application, AppName
from tasks.locks import Lock, held
from tasks.prices import Prices
from tasks.publishing import SCRATCH, publish
from tasks.steps import PLANNED, Step, find
from tasks.usage import Meter, Usage
from tasks.workspace import Workspace

H = TypeVar("H", bound=Handle)
LOCK_WAIT_S = 60.0  # a dead owner on another host is taken over after this time at the latest


class StepResult(Frozen):
    """A line of the step table."""

    step: str
    state: Literal["ran", "cached", "failed", "skipped", "would run"]
    why: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cost: float = 0.0
    peak_mb: float = 0.0
    rows: int | None = None
    output: str = ""


class Observer(Protocol):
    """Told what happens to steps: Prefect, MLflow and the console listen. May never raise into a step."""

    def step_started(self, step: Step[Any], why: str) -> None: ...

    def step_event(self, step: Step[Any], event: dict[str, Any]) -> None: ...

    def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None: ...


@runtime_checkable
class PageObserver(Protocol):
    """An observer that is also told where the page of the night is."""

    def night_page(self, page: Path) -> None: ...


Runner = Callable[[Step[Any], Callable[[], StepResult]], StepResult]


def call_directly(step: Step[Any], body: Callable[[], StepResult]) -> StepResult:
    return body()


class Engine:
    """Runs (or, with `planning`, only looks at) the steps of one night in one workspace.

    runner: wraps each step, e.g. in a Prefect task. observers: told of each start, event and end. on_line: given each
    line that the child processes print.
    """

    def __init__(
        self,
        workspace: Workspace,
        night: str,
        runner: Runner = call_directly,
        observers: tuple[Observer, ...] = (),
        planning: bool = False,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.workspace = workspace
        self.night = night
        self.planning = planning
        self.results: list[StepResult] = []
        self.promised: dict[str, Handle] = {}  # while planning: what each step gave, found or stood in for
        self._runner = runner
        self._observers = observers
        logs = workspace.root / "logs" / night
        self.applications: dict[AppName, Application] = {
            name: Application(name, logs, on_line) for name in ("spark", "torch")
        }

    def run(self, step: Step[H]) -> H:
        """The step's output, by finding it or by running the step. Raises what the job raised."""
        if self.planning:
            return self._plan(step)
        outputs: list[H] = []
        result = self._runner(step, lambda: self._with_room(step, outputs))
        self.results.append(result)
        return outputs[-1]

    def note(self, result: StepResult) -> None:
        """Add a line for a step that was decided outside: kept from another night, or skipped."""
        self.results.append(result)

    def show_page(self, page: Path) -> None:
        for observer in self._observers:
            if isinstance(observer, PageObserver):
                observer.night_page(page)

    @property
    def observers(self) -> tuple[Observer, ...]:
        return self._observers

    def close(self) -> None:
        for application in self.applications.values():
            application.close()

    def _plan(self, step: Step[H]) -> H:
        handle = self._find_or_stand_in(step)
        self.promised[step.name] = handle
        return handle

    def _find_or_stand_in(self, step: Step[H]) -> H:
        waits = step.waits_for()
        if waits:
            self.results.append(StepResult(step=step.name, state="would run", why="after " + ", ".join(waits)))
            return step.planned()
        handle, why = find(step, self.workspace)
        if handle is None:
            self.results.append(StepResult(step=step.name, state="would run", why=why))
            return step.planned()
        self.results.append(_cached(handle, why))
        return handle

    def _with_room(self, step: Step[H], outputs: list[H]) -> StepResult:
        """Whoever met the full disk (a lock, a step in this process, the manifest), one error says so.

        Raises: DiskFull.
        """
        try:
            return self._look_or_run(step, outputs)
        except NightmillError:
            raise
        except Exception as err:
            if not is_disk_full(err):
                raise
            raise DiskFull(
                f"{step.name}: no space left in {self.workspace.root}; free some space or set NIGHTMILL_HOME to a larger disk, "
                "then run again"
            ) from err

    def _look_or_run(self, step: Step[H], outputs: list[H]) -> StepResult:
        handle, why = find(step, self.workspace)
        if handle is None:
            handle, result = self._run_locked(step, why)
        else:
            result = _cached(handle, why)
        self.workspace.remember(self.night, step.name, handle)
        outputs.append(handle)
        for observer in self._observers:
            observer.step_ended(step, result, handle)
        return result

    def _run_locked(self, step: Step[H], why: str) -> tuple[H, StepResult]:
        step_key = f"{step.name}-{step.key()}"
        with held(self.workspace.lock(step_key), LOCK_WAIT_S) as lock:
            done, found = find(step, self.workspace)
            if done is not None:  # another run finished it while we waited for the lock
                return done, _cached(done, found)
            for observer in self._observers:
                observer.step_started(step, why)
            try:
                handle, usage = self._attempt(step, self.workspace.attempt(step_key), lock)
            except BaseException as error:
                self._report_failure(step, error)
                raise
        return handle, StepResult(
            step=step.name, state="ran", why=why, rows=handle.num_rows, output=handle.address, **usage.model_dump()
        )

    def _attempt(self, step: Step[H], attempt: Path, lock: Lock) -> tuple[H, Usage]:
        for handle in step.inputs.values():
            handle.check_bytes()
        _clear(attempt)
        with Meter(self._family_of(step)) as meter:
            outcome = self._work(step, attempt)
        usage = _priced(step, meter.usage)
        return publish(step, self.workspace, attempt, outcome, usage, lock), usage

    def _work(self, step: Step[H], attempt: Path) -> Outcome:
        if step.app == "inline":
            assert step.work is not None
            return step.work(attempt)
        request = Request(
            job=step.job or step.name,
            spec=step.spec.model_dump(mode="json"),
            inputs={role: handle.uri for role, handle in step.inputs.items()},
            out=str(attempt),
            night=step.night,
        )
        return self.applications[step.app].ask(request, step.deadline_s, lambda event: self._tell(step, event))

    def _tell(self, step: Step[Any], event: dict[str, Any]) -> None:
        for observer in self._observers:
            observer.step_event(step, event)

    def _family_of(self, step: Step[Any]) -> Callable[[], list[psutil.Process]]:
        if step.app == "inline":
            return lambda: [psutil.Process()]
        return self.applications[step.app].family

    def _report_failure(self, step: Step[Any], error: BaseException) -> None:
        why = str(error).splitlines()[0] if isinstance(error, NightmillError) and str(error) else type(error).__name__
        result = StepResult(step=step.name, state="failed", why=why)
        self.results.append(result)
        for observer in self._observers:
            observer.step_ended(step, result, None)


def _cached(handle: Handle, why: str) -> StepResult:
    return StepResult(step=handle.step, state="cached", why=why, rows=handle.num_rows, output=handle.address)


def _priced(step: Step[Any], usage: Usage) -> Usage:
    prices = Prices.of_this_machine()
    gpu_seconds = usage.seconds * prices.gpus if step.app == "torch" else 0.0
    cost = prices.cost(usage.cpu_seconds, gpu_seconds)
    return usage.model_copy(update={"gpu_seconds": round(gpu_seconds, 2), "cost": round(cost, 6)})


def _clear(attempt: Path) -> None:
    """Empty an attempt folder but for `scratch/`, from which a killed training goes on."""
    attempt.mkdir(parents=True, exist_ok=True)
    for path in attempt.iterdir():
        if path.name != SCRATCH:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


_current: ContextVar[Engine | None] = ContextVar("nightmill_engine", default=None)


def current_engine() -> Engine:
    engine = _current.get()
    assert engine is not None, "steps run inside `with engine_in_use(...)`"
    return engine


def engine_or_none() -> Engine | None:
    return _current.get()


@contextmanager
def engine_in_use(engine: Engine) -> Iterator[Engine]:
    """Make `engine` the one that steps use; its child processes are gone when this ends."""
    token = _current.set(engine)
    try:
        yield engine
    finally:
        _current.reset(token)
        engine.close()


def is_planned(handle: Handle) -> bool:
    return handle.key == PLANNED
