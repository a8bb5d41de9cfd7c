"""The sketch of traffic: counts only, the same whatever the grouping."""

from __future__ import annotations

import itertools
import json
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.errors import DataError
from training.watch.bins import LENGTH_EDGES, NUM_BUCKETS, bin_of, bucket_counts, repeated_share
from training.watch.sketch import TrafficLine, TrafficSketch, merge

MODEL = "models/export-0123456789abcdef"
IDS = st.lists(st.integers(0, 300_000), max_size=12)
REQUESTS = st.lists(
    st.one_of(
        st.none(),
        st.tuples(
            st.text(max_size=40), IDS, IDS, st.one_of(st.none(), st.floats(0, 1e6)), st.sampled_from(["stop", "length"])
        ),
    ),
    max_size=12,
)


def sketched(requests: list[Any]) -> dict[str, Any]:
    sketch = TrafficSketch(MODEL)
    for request in requests:
        if request is None:
            sketch.error()
        else:
            sketch.add(*request)
    return sketch.flush()


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("at", "seconds")}


@settings(max_examples=60, deadline=None)
@given(REQUESTS, REQUESTS, REQUESTS)
def test_merged_parts_equal_the_whole_exactly(first, second, third):
    whole = without_times(sketched(first + second + third))
    parts = [sketched(first), sketched(second), sketched(third)]
    assert without_times(merge(parts)) == whole
    assert without_times(merge([parts[2], merge(parts[:2])])) == whole


@settings(max_examples=60, deadline=None)
@given(REQUESTS)
def test_line_survives_json_and_fits_the_declared_fields(requests):
    line = sketched(requests)
    read = TrafficLine.model_validate_json(json.dumps(line))
    answered = sum(request is not None for request in requests)
    assert (read.requests, read.errors) == (len(requests), len(requests) - answered)
    for counted in (read.prompt_bytes, read.prompt_tokens, read.answer_tokens):
        assert sum(counted) == answered
    assert sum(read.languages.values()) == sum(read.finish.values()) == answered
    assert sum(read.token_buckets) == sum(len(r[1]) for r in requests if r is not None)


def test_line_of_a_secret_prompt_holds_none_of_its_words():
    line = sketched([("my password is hunter2 and my name is Alice Liddell", [7, 8, 9], [5] * 6, 4.5, "stop")])
    text = json.dumps(line)
    assert not any(word in text for word in ("hunter2", "Alice", "Liddell", "password"))


def test_flush_starts_anew_and_a_quiet_minute_is_a_line_of_zeros():
    sketch = TrafficSketch(MODEL)
    sketch.add("a b c", [1, 2, 3], [4], None, "length")
    assert sketch.flush()["requests"] == 1
    quiet = sketch.flush()
    assert quiet["requests"] == quiet["errors"] == sum(quiet["prompt_bytes"]) == 0
    assert quiet["languages"] == {}


def test_memory_of_a_sketch_does_not_grow_with_requests():
    sketch = TrafficSketch(MODEL)
    sketch.add("a" * 10, list(range(50)), list(range(50)), 3.0, "stop")
    size = len(json.dumps(sketch.flush()))
    for i in range(2000):
        sketch.add(f"request number {i}", list(range(i, i + 50)), list(range(50)), 3.0, "stop")
    assert len(json.dumps(sketch.flush())) < 2 * size


def test_threads_lose_no_request():
    sketch = TrafficSketch(MODEL)

    def send() -> None:
        for _ in range(200):
            sketch.add("one two", [1, 2], [3, 4, 5, 6], 1.5, "stop")
            sketch.error()

    threads = [threading.Thread(target=send) for _ in range(8)]
    lines = []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        lines.append(sketch.flush())
    lines.append(sketch.flush())
    total = merge(lines)
    assert (total["requests"], total["errors"]) == (3200, 1600)
    assert total["prompt_nats"] == 1600 * 1.5
    assert total["prompt_scored_tokens"] == 1600  # of two tokens the first has nothing before it


def test_prompt_nats_that_are_not_finite_are_not_counted():
    line = sketched([("x", [1, 2], [], float("nan"), "stop"), ("x", [1, 2], [], float("inf"), "stop")])
    assert (line["requests"], line["prompt_scored_tokens"], line["prompt_nats"]) == (2, 0, 0.0)


def test_lines_of_two_models_do_not_merge():
    with pytest.raises(DataError, match="lines of one model"):
        merge([TrafficSketch("models/a").flush(), TrafficSketch("models/b").flush()])
    with pytest.raises(DataError, match="got 0 lines"):
        merge([])


@pytest.mark.parametrize(
    ("length", "lower"),
    [(0, 0), (1, 1), (5, 4), (6, 6), (11, 8), (12, 12), (1000, 768), (2**24, 2**24), (2**30, 2**24)],
)
def test_length_falls_into_the_bin_of_the_last_edge_it_reaches(length, lower):
    assert LENGTH_EDGES[bin_of(length, LENGTH_EDGES)] == lower


def test_edges_of_lengths_rise_by_at_most_half_above_three():
    assert list(LENGTH_EDGES) == sorted(set(LENGTH_EDGES))
    assert max(b / a for a, b in itertools.pairwise(LENGTH_EDGES[3:])) <= 1.5


def test_buckets_of_neighbouring_ids_spread_evenly():
    counts = bucket_counts(np.arange(4096))
    assert counts.sum() == 4096
    assert (counts.min(), counts.max(), len(counts)) == (15, 17, NUM_BUCKETS)


@pytest.mark.parametrize(
    ("ids", "share"),
    [([1, 2, 3, 4], 0.0), ([1] * 13, 0.9), ([1, 2, 1, 2, 1, 2], 1 / 3), (list(range(100)), 0.0)],
)
def test_repeated_share_counts_grams_seen_before(ids, share):
    assert repeated_share(ids) == pytest.approx(share)


def test_repeated_share_of_three_tokens_is_undefined():
    assert np.isnan(repeated_share([1, 1, 1]))
