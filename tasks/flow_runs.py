"""Flow runs as the Prefect server knows them, and which process of this machine works on each."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

from spark_jobs.errors import NightmillError
from tasks.catch_up import Overlap, why_not
from tasks.schedule_spec import ScheduleSpec

OWNER_LABEL = "nightmill.owner"  # host:pid:start time of the process that works on a flow run
SKIPPED = "Skipped"  # name of the completed state of a night that gave way
PAGE = 200  # the most that the API gives at once
_claimed: set[tuple[UUID, int]] = set()  # by this process: run, and how often it was started
NOT_BEGUN = (StateType.SCHEDULED, StateType.PENDING)
STARTING = (StateType.PENDING, StateType.RUNNING)
BEGUN = (StateType.RUNNING, StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLING)


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def claim_flow_run() -> None:
    """Note on the flow run around us which process works on it, so that it is found out when that is gone.

    Raises: NightmillError if the run had ended before this process came to start it.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or (run.id, run.run_count) in _claimed:
        return
    process = psutil.Process()
    owner = f"{socket.gethostname()}:{process.pid}:{process.create_time()}"
    try:
        with server() as client:
            end = end_before(client.read_flow_run_states(run.id))
            if end is None:
                client.update_flow_run_labels(run.id, {OWNER_LABEL: owner})
    except (httpx.HTTPError, PrefectException) as error:  # never worth a night: then nobody can tell that it died
        print(f"claim of flow run {run.name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)  # noqa: T201
        return
    if end is not None:
        raise NightmillError(
            f"flow run {run.name} was {end.name} at {end.timestamp:%Y-%m-%d %H:%M:%S} UTC, before this process came to start it ({end.message}); "
            "it does nothing. To run it after all: Retry in the Prefect UI, or start it anew"
        )
    _claimed.add((run.id, run.run_count))


def end_before(states: Iterable[State[Any]]) -> State[Any] | None:
    """The end that a run had before it was started now; None where it was planned, or planned anew since.

    Prefect lets a pod that comes late, or that Kubernetes starts a second time, set a run that has ended to Running. A retry by
    a person or by the flow's own policy passes through Scheduled.
    """
    for state in sorted(states, key=lambda state: state.timestamp, reverse=True):
        if state.type not in STARTING:
            return state if state.is_final() else None
    return None


def why_skipped(spec: ScheduleSpec, night: str) -> str:
    """Why the flow run around us, if the scheduler planned it, should end without work; empty if it should not."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if night or run is None or not run.auto_scheduled or run.deployment_id is None or run.expected_start_time is None:
        return ""
    due, now = run.expected_start_time, datetime.now(UTC)
    with server() as client:
        others = [other for other in runs_of(client, run.deployment_id, now) if other.id != run.id]
    newer = [o.expected_start_time for o in others if o.state_type in NOT_BEGUN and o.expected_start_time]
    return why_not(spec, due, now, newer, list(_overlaps(others, due)))


def runs_of(client: SyncPrefectClient, deployment: UUID, now: datetime) -> list[FlowRun]:
    """Newest runs of a deployment that were due by `now`, newest first."""
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(expected_start_time=FlowRunFilterExpectedStartTime(before_=now)),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=PAGE,
    )


def unfinished(client: SyncPrefectClient, types: Iterable[StateType]) -> Iterator[FlowRun]:
    """Every flow run whose state is of one of these types."""
    yield from _pages(client, FlowRunFilter(state=_of_types(types)))


def cancelled_since(client: SyncPrefectClient, when: datetime) -> Iterator[FlowRun]:
    """Every flow run that was cancelled, and ended, after `when`."""
    ended = FlowRunFilterEndTime(after_=when)
    yield from _pages(client, FlowRunFilter(state=_of_types([StateType.CANCELLED]), end_time=ended))


def _of_types(types: Iterable[StateType]) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))


def _pages(client: SyncPrefectClient, wanted: FlowRunFilter) -> Iterator[FlowRun]:
    offset = 0
    while page := client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def state_age(run: FlowRun, now: datetime) -> timedelta:
    return now - run.state.timestamp if run.state else timedelta()


def owner_of(run: FlowRun) -> tuple[str, int, float] | None:
    """Host, pid and start time of the process that claimed the run."""
    parts = str(run.labels.get(OWNER_LABEL, "")).rsplit(":", 2)
    return (parts[0], int(parts[1]), float(parts[2])) if len(parts) == 3 else None


def _overlaps(others: list[FlowRun], due: datetime) -> Iterator[Overlap]:
    """Runs that had begun before `due` and had not ended by then, and that did work."""
    for other in others:
        began, ended = other.start_time, other.end_time
        skipped = other.state_name == SKIPPED
        if other.state_type in BEGUN and not skipped and began and began < due and (ended is None or ended > due):
            yield Overlap(name=other.name, ended=ended)
