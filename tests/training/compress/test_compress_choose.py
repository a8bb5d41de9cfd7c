"""The choice among candidates: budget, ties, what cannot be known; and which candidates no other beats."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.compress.choose import Candidate, choose, interval, loss_of, table, within
from training.compress.pareto import front, picture
from training.compress_spec import BudgetSpec

BUDGET = BudgetSpec(max_loss=0.02)


def candidate(name: str, weight_bytes: int, loss: float = 0.0, upper: float | None = None, **other: Any) -> Candidate:
    told: dict[str, Any] = {
        "peak_bytes": 10**8, "effective_bits": 4.5, "prefill_tokens_per_s": 900.0, "decode_tokens_per_s": 50.0,
        "joules_per_token": None, "bits_per_byte": 1.5 + loss, "low": 1.4 + loss, "high": 1.6 + loss,
    }  # fmt: skip
    bound = loss if upper is None else upper
    return Candidate(name=name, weight_bytes=weight_bytes, loss=loss, loss_upper=bound, **(told | other))


DENSE = candidate("dense", 1000)


def test_smallest_candidate_within_the_budget_is_chosen() -> None:
    found = [DENSE, candidate("int8", 300, 0.001), candidate("int4", 170, 0.015), candidate("int3", 140, 0.08)]
    best, reason = choose(found, BUDGET)
    assert best == "int4"
    assert "17.0% of the dense bytes" in reason


def test_upper_bound_of_the_loss_decides_and_not_the_loss_itself() -> None:
    found = [DENSE, candidate("int8", 300, 0.001), candidate("int4", 170, 0.015, upper=0.03)]
    assert choose(found, BUDGET)[0] == "int8"


def test_dense_model_stays_where_every_candidate_loses_too_much() -> None:
    best, reason = choose([DENSE, candidate("int3", 140, 0.3), candidate("int4", 170, 0.1)], BUDGET)
    assert (best, "2 of 2 candidates may lose more than 0.02" in reason) == ("dense", True)


def test_candidate_larger_than_the_dense_model_is_not_chosen() -> None:
    assert choose([DENSE, candidate("padded", 1200)], BUDGET)[0] == "dense"


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_loss_that_is_not_known_is_never_within(bound: float) -> None:
    broken = candidate("broken", 10, 0.0, upper=bound)
    assert not within(broken, BUDGET)
    assert choose([DENSE, broken], BUDGET)[0] == "dense"


def test_latency_chooses_the_fastest_writer_and_not_the_smallest() -> None:
    found = [DENSE, candidate("small", 100, decode_tokens_per_s=20.0), candidate("fast", 400, decode_tokens_per_s=80.0)]
    best, reason = choose(found, BudgetSpec(minimize="latency"))
    assert (best, "1.60 times the dense speed" in reason) == ("fast", True)


def test_of_candidates_of_one_size_the_better_is_chosen() -> None:
    assert choose([DENSE, candidate("a", 170, 0.012), candidate("b", 170, 0.011)], BUDGET)[0] == "b"


def test_loss_is_of_sums_and_its_bound_lies_above_it() -> None:
    rng = np.random.default_rng(3)
    size = rng.integers(50, 500, 60).astype(float)
    theirs = np.stack([size * 1.2, size], axis=1)
    ours = np.stack([size * 1.2 + rng.normal(1.0, 3.0, 60), size], axis=1)
    loss, upper = loss_of(ours, theirs, BUDGET)
    assert loss == pytest.approx((ours[:, 0].sum() - theirs[:, 0].sum()) / size.sum() / np.log(2))
    assert loss < upper < loss + 0.05


def test_no_shared_document_leaves_the_loss_unbounded() -> None:
    nothing = np.empty((0, 2))
    assert loss_of(nothing, nothing, BUDGET) == (float("inf"), float("inf"))


def test_interval_of_equal_documents_has_no_width() -> None:
    low, high = interval(np.tile([[70.0, 100.0]], (30, 1)), BUDGET)
    assert low == pytest.approx(high) == pytest.approx(0.7 / np.log(2))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_front_holds_exactly_those_points_that_none_beats(points: list[tuple[int, int]]) -> None:
    found = front([(float(x), float(y)) for x, y in points])
    assert any(found)
    for point, on in zip(points, found, strict=True):
        beaten = any(o[0] <= point[0] and o[1] <= point[1] and o != point for o in points)
        assert on is not beaten


def test_picture_is_well_formed_and_marks_each_candidate() -> None:
    found = [DENSE, candidate("int8", 300, 0.001), candidate("<int4>", 170, 0.1)]
    drawn = picture(found, "int8", frozenset({"dense", "int8"}), BUDGET)
    root = ElementTree.fromstring(drawn)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 3
    assert sum(circle.get("fill") == "white" for circle in circles) == 1
    assert drawn == picture(found, "int8", frozenset({"dense", "int8"}), BUDGET)


def test_table_is_ordered_by_bytes_and_says_who_is_within() -> None:
    lines = table([DENSE, candidate("int8", 300, 0.001), candidate("int3", 140, 0.3)], "int8", BUDGET).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["int3", "**int8**", "dense"]
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["no", "yes", "yes"]


def test_candidate_of_which_nothing_is_known_is_not_in_the_picture() -> None:
    unknown = candidate("unknown", 10, 0.0, upper=float("inf"), low=float("inf"), high=float("inf"))
    drawn = picture([DENSE, unknown], "dense", frozenset({"dense"}), BUDGET)
    assert "inf" not in drawn
    assert drawn.count("<circle") == 1
