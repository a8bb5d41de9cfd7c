import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.near_copies import ALIKE, BUCKET_LEADERS, choose, pair_buckets

CHAIN = 1_000


def batches_of(rows: list[dict[str, object]], schema: pa.Schema, size: int) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pylist(rows[at : at + size], schema=schema) for at in range(0, len(rows), size)]


def paired(buckets: list[int], size: int) -> list[tuple[str, str]]:
    schema = pa.schema([("key64", pa.int64()), ("priority", pa.int32()), ("doc_id", pa.string())])
    rows = [{"key64": key, "priority": 1, "doc_id": f"{n:05d}"} for n, key in enumerate(sorted(buckets))]
    pairs = [row for batch in pair_buckets(iter(batches_of(rows, schema, size))) for row in batch.to_pylist()]
    return [(row["doc_id"], row["leader"]) for row in pairs]


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 7))
@settings(deadline=None, max_examples=100)
def test_pairs_are_all_pairs_of_each_small_bucket_whatever_the_batches(buckets: list[int], size: int) -> None:
    keys = sorted(buckets)
    wanted = [
        (f"{right:05d}", f"{left:05d}") for left, right in itertools.combinations(range(len(keys)), 2) if keys[left] == keys[right]
    ]  # fmt: skip
    assert sorted(paired(buckets, size)) == sorted(wanted)


@pytest.mark.parametrize("size", [50, 10_000])
def test_pairs_of_a_huge_bucket_stay_linear(size: int) -> None:
    pairs = paired([7] * 5_000, size)
    assert len(pairs) == 5_000 * BUCKET_LEADERS - BUCKET_LEADERS * (BUCKET_LEADERS + 1) // 2
    assert max(leader for _, leader in pairs) == f"{BUCKET_LEADERS - 1:05d}"


def chosen(
    pairs: list[tuple[str, str, str | None, float]], size: int = 100
) -> dict[str, tuple[str, str | None, float]]:
    schema = pa.schema([(name, pa.float64() if name == "jaccard" else pa.string()) for name in ALIKE])
    rows = [dict(zip(ALIKE, pair, strict=True)) for pair in sorted(pairs, key=lambda pair: pair[0])]
    found = [row for batch in choose(iter(batches_of(rows, schema, size))) for row in batch.to_pylist()]
    assert len({row["doc_id"] for row in found}) == len(found)
    return {row["doc_id"]: (row["keeper"], row["night"], row["jaccard"]) for row in found}


@pytest.mark.parametrize("size", [1, 7, 5_000])
def test_choice_along_a_chain_of_a_thousand_removes_every_other_one(size: int) -> None:
    chain = [(f"{n:05d}", f"{n - 1:05d}", None, 0.8) for n in range(1, CHAIN)]
    assert chosen(chain, size) == {f"{n:05d}": (f"{n - 1:05d}", None, 0.8) for n in range(1, CHAIN, 2)}


def test_choice_names_the_most_alike_of_those_that_stay() -> None:
    pairs = [
        ("c", "a", None, 0.7),
        ("c", "b", None, 0.9),
        ("d", "c", None, 0.99),
        ("d", "a", None, 0.75),
        ("b", "z", "n1", 0.8),
    ]
    assert chosen(pairs) == {"b": ("z", "n1", 0.8), "c": ("a", None, 0.7), "d": ("a", None, 0.75)}


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.integers(1, 5))
@settings(deadline=None, max_examples=100)
def test_choice_leaves_no_alike_pair_and_removes_only_for_one_that_stays(
    edges: set[tuple[int, int]], size: int
) -> None:
    pairs = [(str(right), str(left), None, 0.8) for left, right in edges if left < right]
    gone = chosen(pairs, size)
    assert all(keeper not in gone for keeper, _, _ in gone.values())
    assert all(right in gone or left in gone for right, left, _, _ in pairs)
