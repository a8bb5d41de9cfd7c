"""Lines of servers: which belong to a window, what cannot be read, what is too old."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from training.watch.sketch import TrafficSketch
from training.watch.traffic import days_between, forget_days, hourly, newest, read_lines, total

MODEL, OLD = "models/export-1", "models/export-0"
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def line_at(at: datetime, model: str = MODEL, requests: int = 1) -> dict:
    sketch = TrafficSketch(model)
    for _ in range(requests):
        sketch.add("how are you", [5, 6, 7], [8, 9], 3.0, "stop")
    return sketch.flush() | {"at": at.isoformat()}


def write(folder: Path, replica: str, *lines: dict) -> None:
    for line in lines:
        day = folder / line["at"][:10]
        day.mkdir(parents=True, exist_ok=True)
        with (day / f"{replica}.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "traffic"


def test_a_line_belongs_to_the_window_it_ended_in(folder):
    write(folder, "a-1", *(line_at(NOON + timedelta(minutes=m)) for m in (-60, -59, 0, 1)))
    found = read_lines(folder, NOON - timedelta(hours=1), NOON)
    assert sorted(line.at for line in found.lines) == [NOON - timedelta(minutes=59), NOON]


def test_a_window_over_midnight_reads_both_days_of_all_replicas(folder):
    midnight = datetime(2026, 11, 27, tzinfo=UTC)
    for replica in ("a-1", "b-2"):
        write(folder, replica, line_at(midnight - timedelta(minutes=5)), line_at(midnight + timedelta(minutes=5)))
    found = read_lines(folder, midnight - timedelta(minutes=30), midnight + timedelta(minutes=30))
    assert (len(found.lines), found.replicas) == (4, 2)


def test_half_a_line_and_strange_ones_are_counted_and_the_rest_is_read(folder):
    write(folder, "a-1", line_at(NOON))
    path = folder / "2026-11-27" / "a-1.jsonl"
    with path.open("a") as stream:
        stream.write('{"at": 3}\n\n' + json.dumps(line_at(NOON) | {"text": "hello"}) + "\n")
        stream.write(json.dumps(line_at(NOON))[:200])
    (folder / "2026-11-27" / "b-2.jsonl").write_bytes(b"\xff\xfe\x00\n")
    found = read_lines(folder, NOON - timedelta(hours=1), NOON)
    assert (len(found.lines), found.num_unreadable) == (1, 4)


def test_lines_of_the_model_before_a_swap_are_told_apart(folder):
    write(folder, "a-1", line_at(NOON, OLD, 3), line_at(NOON, MODEL, 2))
    found = read_lines(folder, NOON - timedelta(hours=1), NOON)
    assert [line.requests for line in found.of(MODEL)] == [2]
    assert found.other_models(MODEL) == {OLD: 3}


def test_earlier_traffic_comes_as_sums_by_hour(folder):
    start = NOON - timedelta(days=1)
    for minutes in (5, 6, 59, 61):
        write(folder, "a-1", line_at(start + timedelta(minutes=minutes)))
    write(folder, "b-2", line_at(start + timedelta(minutes=7), OLD))
    assert [line.requests for line in hourly(folder, start, NOON)] == [4, 1]
    assert [line.requests for line in hourly(folder, start, NOON, MODEL)] == [3, 1]


def test_total_of_lines_is_their_sum(folder):
    write(folder, "a-1", line_at(NOON, MODEL, 2), line_at(NOON - timedelta(minutes=3), MODEL, 5))
    whole = total(read_lines(folder, NOON - timedelta(hours=1), NOON).lines, MODEL)
    assert (whole.requests, whole.at, sum(whole.token_buckets)) == (7, NOON, 21)


def test_newest_line_is_found_days_back_and_none_where_nothing_ever_answered(folder):
    assert newest(folder, NOON) is None
    write(folder, "a-1", line_at(NOON - timedelta(days=5)), line_at(NOON + timedelta(minutes=3)))
    assert newest(folder, NOON) == NOON - timedelta(days=5)


def test_old_days_are_deleted_and_nothing_else(folder):
    write(folder, "a-1", *(line_at(NOON - timedelta(days=d)) for d in range(4)))
    (folder / "2026-13-99").mkdir()
    (folder / "notes").mkdir()
    assert forget_days(folder, date(2026, 11, 26)) == ["2026-11-24", "2026-11-25"]
    assert sorted(p.name for p in folder.iterdir()) == ["2026-11-26", "2026-11-27", "2026-13-99", "notes"]


def test_days_between_two_times_in_other_zones_are_those_of_utc():
    east = datetime.fromisoformat("2026-11-27T01:00:00+09:00")
    assert days_between(east, NOON) == ["2026-11-26", "2026-11-27"]
