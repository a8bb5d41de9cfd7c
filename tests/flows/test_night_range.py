"""Which nights a backfill runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flows.night_range import nights_between
from spark_jobs.errors import RequestError

TODAY = datetime.now(UTC).date()


def test_range_holds_both_ends_oldest_first_across_a_leap_day() -> None:
    assert list(nights_between("2024-02-28", "2024-03-01")) == ["2024-02-28", "2024-02-29", "2024-03-01"]


def test_range_without_a_last_night_ends_yesterday() -> None:
    yesterday = (TODAY - timedelta(days=1)).isoformat()

    assert list(nights_between(yesterday, "")) == [yesterday]


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        ("", "2026-01-01", "no first night"),
        ("2026-01-02", "2026-01-01", "before the first"),
        ("2026-13-01", "", "wanted a date"),
        ("2020-01-01", "2024-01-01", "at most 366"),
        (TODAY.isoformat(), (TODAY + timedelta(days=1)).isoformat(), "still to come"),
    ],
)
def test_range_that_is_none_is_refused(first: str, last: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        nights_between(first, last)
