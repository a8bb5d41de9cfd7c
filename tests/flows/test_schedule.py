"""Late nights against a real Prefect server: who runs, who gives way, and which night each is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, FlowRun, State
from prefect.client.schemas.schedules import CronSchedule
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Crashed, Failed, Pending, Running, Scheduled

from flows.deploy import prefect_file, read_prefect_file
from flows.night import WHOLE_NIGHT, scheduled_night
from flows.nightly import nightly
from flows.specs import NightlySpec
from tasks.locks import held
from tasks.servers import embedded_prefect
from tasks.workspace import Workspace


@pytest.fixture(scope="module")
def client(own_home: Path) -> Iterator[SyncPrefectClient]:
    with (
        embedded_prefect(own_home) as address,
        temporary_settings({PREFECT_API_URL: address}),
        SyncPrefectClient(address) as client,
    ):
        yield client


def missed_nights(client: SyncPrefectClient, name: str, days: int) -> list[FlowRun]:
    """Runs of a deployment like `nightly` that its schedule planned for the last days, oldest first."""
    limit = next(e for e in read_prefect_file(prefect_file()).deployments if e.name == "nightly").concurrency_limit
    assert limit is not None
    deployment = client.create_deployment(
        flow_id=client.create_flow(nightly),
        name=name,
        schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *", timezone="Etc/UTC"), active=True)],
        concurrency_limit=limit.limit,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(limit.collision_strategy)),
    )
    now = datetime.now(UTC)
    window = {"start_time": (now - timedelta(days=days)).isoformat(), "end_time": now.isoformat(), "min_runs": days}
    client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json=window)
    runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
    return sorted(runs, key=lambda run: run.expected_start_time or now)


@pytest.fixture
def another_night(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody works on a night of this pipeline, so that one that begins is refused at once, before it starts a JVM."""
    monkeypatch.setattr("flows.night.LOCK_WAIT_S", 0.0)
    with held(Workspace.of("late").lock(WHOLE_NIGHT)):
        yield


def started(client: SyncPrefectClient, run: FlowRun, **sections: Any) -> Any:
    """The run as a worker starts it; its final state."""
    client.set_flow_run_state(run.id, Pending())
    parameters = {"spec": late_spec(**sections), "night": ""}
    return run_flow(nightly, client.read_flow_run(run.id), parameters, return_type="state")


def late_spec(**sections: Any) -> NightlySpec:
    return NightlySpec.model_validate(
        {"name": "late", "ingest": {"sources": [{"kind": "jsonl", "path": "/nowhere"}]}} | sections
    )


def test_five_missed_nights_run_the_newest_and_the_others_say_why_not(
    client: SyncPrefectClient, another_night: None
) -> None:
    runs = missed_nights(client, "five", 5)
    assert len(runs) == 5
    for run in runs[:-1]:
        state = started(client, run)
        assert (state.type.value, state.name) == ("COMPLETED", "Skipped"), state
        assert f"Night {run.expected_start_time:%Y-%m-%d} was missed" in state.message
        assert client.read_flow_run(run.id).state_name == "Skipped"
    newest = started(client, runs[-1])
    assert newest.type.value == "FAILED"  # it did begin, and met the lock of another
    assert f"nightly: process {os.getpid()}" in newest.message


def test_night_that_meets_a_running_one_waits_for_the_slot_and_is_not_cancelled(client: SyncPrefectClient) -> None:
    first, second = missed_nights(client, "two", 2)
    client.set_flow_run_state(first.id, Pending())
    client.set_flow_run_state(second.id, Pending())
    assert client.read_flow_run(second.id).state_name == "AwaitingConcurrencySlot"


def test_failed_night_that_is_retried_gets_the_slot_of_its_deployment_again(client: SyncPrefectClient) -> None:
    """It had gone to Crashed where a retry met a limit of one (PrefectHQ/prefect#22885)."""
    (run,) = missed_nights(client, "retried", 1)
    for state in (
        Pending(),
        Running(),
        Failed(),
        Scheduled(name="AwaitingRetry", scheduled_time=datetime.now(UTC)),
        Pending(),
    ):
        client.set_flow_run_state(run.id, state)
    assert client.read_flow_run(run.id).state_name == "Pending"


@pytest.mark.parametrize("end", [Crashed(message="no pod in time"), Cancelled()], ids=["crashed", "cancelled"])
def test_pod_that_comes_after_its_run_has_ended_does_nothing_until_a_person_retries(
    client: SyncPrefectClient, another_night: None, end: State[Any]
) -> None:
    """A GPU node that took too long: Prefect called the run Crashed, and then it ran all the same (PrefectHQ/prefect#16429)."""
    (run,) = missed_nights(client, f"slow-{end.name}", 1)
    client.set_flow_run_state(run.id, Pending())
    client.set_flow_run_state(run.id, end)
    late = run_flow(nightly, client.read_flow_run(run.id), {"spec": late_spec(), "night": ""}, return_type="state")
    assert late.type.value == "FAILED"
    assert f"was {end.name} at" in late.message
    client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", scheduled_time=datetime.now(UTC)))
    assert (
        f"nightly: process {os.getpid()}" in started(client, run).message
    )  # it did begin, and met the lock of another


def test_setting_of_the_deployment_makes_up_for_every_night(client: SyncPrefectClient, another_night: None) -> None:
    run, _ = missed_nights(client, "all", 2)
    state = started(client, run, schedule={"catch_up": "all"})
    assert state.type.value == "FAILED"
    assert f"nightly: process {os.getpid()}" in state.message


@flow
def which_night() -> str:
    return scheduled_night()


def test_run_that_starts_or_is_retried_after_midnight_keeps_its_night(client: SyncPrefectClient) -> None:
    """Also when it waited for a slot meanwhile: that gives its state a new time, but not the run."""
    due = datetime(2026, 3, 8, 23, 50, tzinfo=UTC)
    run = client.create_flow_run(which_night, state=Scheduled(scheduled_time=due))
    again = Scheduled(name="AwaitingConcurrencySlot", scheduled_time=datetime.now(UTC))
    client.set_flow_run_state(run.id, again, force=True)
    assert run_flow(which_night, client.read_flow_run(run.id)) == "2026-03-08"
    client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", scheduled_time=datetime.now(UTC)), force=True)
    assert run_flow(which_night, client.read_flow_run(run.id)) == "2026-03-08"


@pytest.mark.parametrize(
    ("first_day", "timezone", "cron"),
    [
        (datetime(2026, 3, 6), "America/New_York", "30 2 * * *"),  # 02:30 does not exist on March 8
        (datetime(2026, 10, 30), "America/New_York", "30 1 * * *"),  # 01:30 comes twice on November 1
        (datetime(2026, 3, 27), "Europe/Berlin", "30 2 * * *"),
        (datetime(2026, 10, 23), "Europe/Berlin", "30 2 * * *"),
    ],
)
def test_local_schedule_across_a_change_of_the_clock_gives_each_night_once(
    first_day: datetime, timezone: str, cron: str
) -> None:
    import asyncio

    schedule = CronSchedule(cron=cron, timezone=timezone)
    from prefect.server.schemas.schedules import CronSchedule as ServerSchedule

    dates = asyncio.run(
        ServerSchedule.model_validate(schedule.model_dump()).get_dates(5, start=first_day.replace(tzinfo=UTC))
    )
    nights = [due.astimezone(UTC).date() for due in dates]
    assert nights == [first_day.date() + timedelta(days=day) for day in range(5)] or nights == [
        first_day.date() + timedelta(days=day) for day in range(1, 6)
    ]
