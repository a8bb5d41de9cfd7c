from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs import key_index
from spark_jobs.errors import DataError
from spark_jobs.key_index import IndexFile, IndexReader, Run, RunReader

RANDOM = np.random.default_rng(7).integers(0, 2**64, 200_000, dtype=np.uint64)


def write_run(workspace: Path, name: str, keys: np.ndarray, places: np.ndarray, ranges: int = 1) -> Run:
    order = np.lexsort((places, keys))
    keys, places = keys[order], places[order]
    for number in range(ranges):
        low, high = key_index.range_bounds(number, ranges)
        inside = (keys >= low) & (keys <= high)
        key_index.write_range(workspace / name, number, keys[inside], places[inside])
    return Run(folder=name, first=0, last=0, num_rows=len(keys), num_ranges=ranges)


@pytest.mark.parametrize("ranges", [1, 8])
def test_look_up_finds_each_key_and_nothing_else(tmp_path: Path, ranges: int) -> None:
    half = RANDOM[:20_000]
    run = write_run(tmp_path, "run", half, np.arange(20_000, dtype=np.uint64), ranges)
    queries = RANDOM[10_000:40_000]
    hits = IndexReader(str(tmp_path), (), (run,)).look_up(queries, 64)
    assert hits.query.tolist() == list(range(10_000))
    assert hits.place.tolist() == list(range(10_000, 20_000))


@given(
    st.lists(st.integers(0, 9) | st.sampled_from([2**63, 2**64 - 1])),
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9)),
)
@settings(deadline=None, max_examples=100)
def test_look_up_of_any_keys_equals_a_scan(
    tmp_path_factory: pytest.TempPathFactory, held: list[int], asked: list[int]
) -> None:
    workspace = tmp_path_factory.mktemp("index")
    half = len(held) // 2
    runs = tuple(
        write_run(workspace, name, np.array(held[part], np.uint64), np.arange(len(held), dtype=np.uint64)[part], ranges)
        for name, part, ranges in (("old", slice(0, half), 2), ("new", slice(half, None), 4))
    )
    hits = IndexReader(str(workspace), (), runs).look_up(np.array(asked, np.uint64), limit=3)
    found = list(zip(hits.query.tolist(), hits.place.tolist(), strict=True))
    wanted = [
        (query, place) for query, key in enumerate(asked)
        for place in [place for place, one in enumerate(held) if one == key][:3]
    ]  # fmt: skip
    assert found == wanted


def test_filter_reaches_all_its_bits_and_keeps_its_false_positive_rate(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", RANDOM[:100_000], np.zeros(100_000, np.uint64))
    words = np.fromfile(tmp_path / "run/00000.bloom", np.uint64)
    share = np.unpackbits(words.view(np.uint8)).mean()
    assert 0.4 < share < 0.55  # eight of 512 bits for each of 42 keys
    lines = RunReader(tmp_path, run).look_up(np.sort(RANDOM[100_000:]), 64).lines
    assert (lines > 1).mean() < 0.02


def test_lines_touched_hardly_grow_with_the_run(tmp_path: Path) -> None:
    lines = []
    for name, size in (("small", 10_000), ("large", 100_000)):
        run = write_run(tmp_path, name, RANDOM[:size], np.zeros(size, np.uint64))
        asked = np.concatenate((RANDOM[:500], RANDOM[100_000:]))  # one in two hundred is there
        lines.append(IndexReader(str(tmp_path), (), (run,)).look_up(asked, 64).lines.sum())
    assert lines[1] / lines[0] < 1.1


@pytest.mark.parametrize(
    ("runs", "rows", "merged"),
    [((), 5, 0), ((5,), 5, 1), ((8,), 5, 0), ((10, 5), 5, 2), ((100, 5), 5, 1), ((5, 100), 5, 0)],
)
def test_a_night_takes_in_the_runs_that_are_not_much_larger(runs: tuple[int, ...], rows: int, merged: int) -> None:
    live = tuple(Run(folder="x", first=n, last=n, num_rows=size, num_ranges=1) for n, size in enumerate(runs))
    assert key_index.runs_to_merge(live, rows) == merged


def test_equal_nights_leave_few_runs_and_rewrite_each_row_seldom() -> None:
    runs: tuple[Run, ...] = ()
    written = 0
    for night in range(256):
        merged = key_index.runs_to_merge(runs, 100)
        size = 100 + sum(run.num_rows for run in runs[len(runs) - merged :])
        runs = (*runs[: len(runs) - merged], Run(folder="", first=night, last=night, num_rows=size, num_ranges=1))
        written += size
        assert len(runs) <= 8
    assert sum(run.num_rows for run in runs) == 25_600
    assert written / 25_600 <= 9  # log2(256) + 1


def test_rows_between_gives_the_rows_of_a_narrower_range(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", RANDOM[:5_000], np.arange(5_000, dtype=np.uint64), ranges=2)
    found = []
    for number in range(8):
        keys, places = RunReader(tmp_path, run).rows_between(*key_index.range_bounds(number, 8))
        assert (keys == np.sort(keys)).all()
        assert (RANDOM[places.astype(int)] == keys).all()
        found += keys.tolist()
    assert found == np.sort(RANDOM[:5_000]).tolist()


@pytest.mark.parametrize("text", ["", "{", '{"version": 99}', '{"version": 1}'])
def test_an_index_that_is_missing_or_of_another_version_is_refused(tmp_path: Path, text: str) -> None:
    if text:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index\.json"):
        IndexFile.load(tmp_path)
