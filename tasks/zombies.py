"""What the dead left behind: flow runs that say they run, MLflow runs, locks, processes. No terminal state is ever touched.

A run is given up when the process that claimed it is gone from this machine; what another machine claimed is that machine's to
sweep. A run that waits for a process which never came is given up after `PENDING_S`, so that its slot is free again. The other
way round, a process that works on a run which has long been Cancelled is stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import gethostname
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Crashed

from spark_jobs.errors import StepBusy
from spark_jobs.manifests import Frozen
from tasks.child import kill_all, sweep_orphans
from tasks.flow_runs import cancelled_since, owner_of, server, state_age, unfinished
from tasks.locks import held, is_live, is_running

PENDING_S = 3600.0  # a pod on an autoscaled node may take half of this; a process takes seconds
CANCELLED_S = 120.0  # a cancelled run has this long to end by itself: ours take 20 s, Prefect kills after 30
LOOK_BACK = timedelta(days=2)  # at cancelled runs
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"  # in the environment of a worker's process: the run it was started for
UNDECIDED = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)


class Swept(Frozen):
    """One thing that was put right, in words."""

    kind: str
    name: str
    what: str


def sweep(home: Path) -> list[Swept]:
    """Put right what can be seen from this machine: processes, locks, flow runs, MLflow runs."""
    orphans = [Swept(kind="process", name=str(pid), what="its run is gone; killed") for pid in sweep_orphans()]
    with server() as client:
        cancelled = sweep_cancelled(client)
        runs = sweep_flow_runs(client)
    return [*orphans, *cancelled, *sweep_locks(home), *runs, *sweep_tracking(home)]


def sweep_before_night(home: Path) -> None:
    """Locks, and in a flow run the server's runs, before the night begins. A lock may be left where its step has its output: killed
    between publishing and letting go. Never worth a night: what goes wrong is said, not raised.
    """
    swept = sweep_locks(home)
    if FlowRunContext.get() is not None:
        try:
            with server() as client:
                swept += sweep_flow_runs(client)
        except (httpx.HTTPError, PrefectException) as error:
            swept.append(Swept(kind="sweep", name="", what=f"{type(error).__name__}: {str(error)[:200]}"))
    for line in swept:
        print(f"put right: {line.kind} {line.name}: {line.what}", file=sys.stderr)  # noqa: T201


def sweep_flow_runs(client: SyncPrefectClient, now: datetime | None = None) -> list[Swept]:
    """Flow runs whose process is gone become Crashed, or Cancelled where that was being done; their task runs too."""
    now = now or datetime.now(UTC)
    swept = []
    for run in list(unfinished(client, UNDECIDED)):
        why = why_dead(run, now)
        if why and _end(client, run, why):
            swept.append(Swept(kind="flow run", name=run.name, what=why))
    return swept


def sweep_cancelled(client: SyncPrefectClient, now: datetime | None = None) -> list[Swept]:
    """Processes of this machine that go on although their run was Cancelled are stopped, with all they started.

    Whoever should have stopped them was not there: a worker that had died (the server itself calls the run Cancelled then), or a
    process that hangs in its own clean-up.
    """
    now = now or datetime.now(UTC)
    swept = []
    for run in cancelled_since(client, now - LOOK_BACK):
        process = _worker_process(run)
        if process is None or state_age(run, now).total_seconds() < CANCELLED_S:
            continue
        with suppress(psutil.NoSuchProcess):
            kill_all({process, *process.children(recursive=True)})
            swept.append(Swept(kind="process", name=str(process.pid), what=f"its run {run.name} was Cancelled; killed"))
    return swept


def _worker_process(run: FlowRun) -> psutil.Process | None:
    """The process that a worker started for this very run, if it lives on this machine. Not one that runs it inside another flow."""
    host, pid, started = owner_of(run) or ("", 0, 0.0)
    if host != gethostname() or not is_running(pid, started):
        return None
    try:
        process = psutil.Process(pid)
        return process if process.environ().get(RUN_VARIABLE) == str(run.id) else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def why_dead(run: FlowRun, now: datetime) -> str:
    """Why nobody works on this run any more; empty if somebody does, or may."""
    owner = owner_of(run)
    if owner is None:
        if run.state_type != StateType.PENDING or state_age(run, now).total_seconds() < PENDING_S:
            return ""
        minutes = state_age(run, now).total_seconds() / 60
        return f"Waited {minutes:.0f} minutes for a process that never came. Run it again."
    host, pid, started = owner
    if host != gethostname() or is_running(pid, started):
        return ""
    return (
        f"Process {pid} on {host}, which worked on this run, is gone: killed, out of memory, or the machine was restarted. "
        "Run the same night again: finished steps are kept."
    )


def _end(client: SyncPrefectClient, run: FlowRun, why: str) -> bool:
    """Whether the run was ended here. It may have ended by itself since it was read."""
    try:
        now = client.read_flow_run(run.id)
    except ObjectNotFound:
        return False
    if now.state is None or now.state.is_final() or now.state.type not in UNDECIDED:
        return False
    ended: State[Any] = Cancelled(message=why) if now.state.type == StateType.CANCELLING else Crashed(message=why)
    answer = client.set_flow_run_state(run.id, ended)  # not forced: the server, too, lets nothing terminal crash
    if answer.status != SetStateStatus.ACCEPT:
        return False
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))):
        if task_run.state and not task_run.state.is_final():
            client.set_task_run_state(task_run.id, Crashed(message=why), force=True)
    return True


def sweep_locks(home: Path) -> list[Swept]:
    """Locks whose owner is dead go. Each is taken over first, as the next run would, so that no living owner loses one."""
    swept = []
    for path in sorted(home.glob("workspaces/*/locks/*.json")):
        if not is_live(path) and path.exists():
            try:
                with held(path):
                    swept.append(
                        Swept(kind="lock", name=f"{path.parent.parent.name}/{path.stem}", what="its owner is gone")
                    )
            except StepBusy:  # another run was faster
                continue
    return swept


def sweep_tracking(home: Path) -> list[Swept]:
    """MLflow runs of all pipelines that say RUNNING though their process is gone become KILLED."""
    return [Swept(kind="MLflow run", name=run_id, what="its process is gone; KILLED") for run_id in _killed_runs(home)]


def _killed_runs(home: Path) -> Iterator[str]:
    from mlflow import MlflowClient

    from tasks.servers import tracking_uri
    from tasks.tracking_store import end_runs_of_the_dead

    client = MlflowClient(tracking_uri(home))
    for experiment in client.search_experiments():
        yield from end_runs_of_the_dead(client, experiment.experiment_id)
