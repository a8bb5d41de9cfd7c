"""Which of several late nights run, decided on times alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.catch_up import Overlap, why_not
from tasks.schedule_spec import ScheduleSpec

BACK = datetime(2026, 3, 10, 9, 30, tzinfo=UTC)  # when the machine is on again
MISSED = [datetime(2026, 3, day, 2, tzinfo=UTC) for day in range(6, 11)]


def run_at(spec: ScheduleSpec, due: list[datetime], now: datetime) -> list[datetime]:
    """Nights that run when all of them are looked at, oldest first, as workers do."""
    return [night for number, night in enumerate(due) if not why_not(spec, night, now, due[number + 1 :])]


def test_five_missed_nights_run_the_newest_alone_by_default() -> None:
    assert run_at(ScheduleSpec(), MISSED, BACK) == [MISSED[-1]]


def test_catch_up_all_runs_each_of_them() -> None:
    assert run_at(ScheduleSpec(catch_up="all"), MISSED, BACK) == MISSED


@pytest.mark.parametrize(("hours", "runs"), [(7.0, []), (8.0, MISSED[-1:])])
def test_catch_up_none_runs_a_night_only_within_its_hours(hours: float, runs: list[datetime]) -> None:
    """The last of them is seven and a half hours late."""
    assert run_at(ScheduleSpec(catch_up="none", late_hours=hours), MISSED, BACK) == runs


def test_reason_names_both_nights_the_setting_and_the_way_to_make_up_for_it() -> None:
    why = why_not(ScheduleSpec(), MISSED[0], BACK, MISSED[1:])
    assert "2026-03-06" in why
    assert "2026-03-10" in why
    assert "schedule.catch_up latest" in why
    assert "nightmill backfill" in why


def test_night_that_is_due_only_later_is_nothing_to_give_way_to() -> None:
    assert why_not(ScheduleSpec(), MISSED[-1], BACK, [BACK + timedelta(hours=16)]) == ""


@pytest.mark.parametrize(("overlap", "runs"), [("wait", True), ("skip", False)])
def test_night_whose_time_came_while_another_worked_waits_or_is_skipped(overlap: str, runs: bool) -> None:
    spec = ScheduleSpec.model_validate({"overlap": overlap})
    other = Overlap(name="demo 2026-03-09", ended=BACK)
    assert (why_not(spec, MISSED[-1], BACK, [], [other]) == "") == runs


def test_clock_put_back_changes_nothing_as_times_carry_their_zone() -> None:
    """New York, 2026-11-01: 01:30 happens twice, and only the offset tells which of the two is newer."""
    zone = ZoneInfo("America/New_York")
    first, second = (datetime(2026, 11, 1, 1, 30, fold=fold, tzinfo=zone).astimezone(UTC) for fold in (0, 1))
    now = second + timedelta(minutes=1)
    assert run_at(ScheduleSpec(), [first, second], now) == [second]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20, unique=True), st.integers(0, 20_000))
def test_exactly_one_night_of_those_that_are_due_runs(minutes: list[int], now_minute: int) -> None:
    due = [MISSED[0] + timedelta(minutes=m) for m in sorted(minutes) if m <= now_minute]
    now = MISSED[0] + timedelta(minutes=now_minute)
    assert len(run_at(ScheduleSpec(), due, now)) == (1 if due else 0)
