"""The gate: is the candidate good enough to replace the champion? A pure decision over evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.evaluate.evidence import Evidence
from training.evaluate.gate_tests import (
    PRIMARY,
    GateTest,
    benchmark_test,
    better_tests,
    guard_tests,
    on_items,
    primary_test,
    shared_scores,
    slice_tests,
)
from training.evaluate.paired_bounds import Paired, compare
from training.gate_spec import GateSpec


@dataclass(frozen=True)
class Decision:
    """difference: candidate minus champion in bits per byte, below 0 is better; upper_bound: of its interval. tests: a row
    each, those that decide and those that only claim."""

    decision: Literal["promote", "keep"]
    reason: str
    difference: float | None = None
    upper_bound: float | None = None
    num_documents: int = 0
    tests: tuple[GateTest, ...] = ()


def decide(candidate: Evidence, champion: Evidence | None, spec: GateSpec) -> Decision:
    """Promote only on evidence: too few documents, a tie, or one test that does not pass keep the champion."""
    if champion is None:
        return _first(candidate, spec)
    shared = sorted(candidate.documents.keys() & champion.documents.keys())
    if len(shared) < spec.min_documents:
        return _too_few(len(shared), spec)
    ours, theirs = shared_scores(candidate, champion, shared)
    paired = compare(ours, theirs, spec)
    benchmarks = on_items(candidate, champion, spec)
    slices = slice_tests(candidate, champion, shared, spec)
    num_lost = len(champion.documents.keys() - candidate.documents.keys())
    tests = (
        primary_test(paired, len(shared), spec),
        *(benchmark_test(one, spec) for one in benchmarks),
        *slices,
        *guard_tests(candidate, champion, slices, num_lost, spec),
        *better_tests(paired, len(shared), benchmarks, spec),
    )
    decision, reason = _verdict(_told(ours, theirs, paired, spec), tests, is_tie=bool((ours == theirs).all()))
    return Decision(decision, reason, paired.difference, tests[0].bound, len(shared), tests)


def _verdict(told: str, tests: Sequence[GateTest], is_tie: bool) -> tuple[Literal["promote", "keep"], str]:
    if is_tie:
        return "keep", f"the two models score every document alike, a tie: champion stays ({told})"
    refusing = [row for row in tests if row.refuses]
    if refusing:
        others = [_refusal(row) for row in refusing if row.kind != "primary"]
        return "keep", "; ".join([told, *others]) + ": champion stays"
    more = sum(row.kind in ("benchmark", "slice", "guard") and row.outcome == "passed" for row in tests)
    better = [row.name.removeprefix("better: ") for row in tests if row.outcome == "shown"]
    shown = f"; shown to be better in {', '.join(better)}" if better else ""
    return "promote", f"{told}; {more} more tests passed{shown}"


def _told(ours: np.ndarray, theirs: np.ndarray, paired: Paired, spec: GateSpec) -> str:
    first, second = (sums[0] / sums[1] for sums in (ours.sum(axis=0), theirs.sum(axis=0)))
    return (
        f"candidate {first:.4f} against champion {second:.4f} bits per byte on {len(ours)} documents: difference "
        f"{paired.difference:+.4f}, at most {paired.upper(spec.confidence):+.4f} with {spec.confidence:.0%} confidence, "
        f"{spec.margin:+.4f} allowed"
    )


def _refusal(row: GateTest) -> str:
    if row.outcome == "untested":
        why = "nothing to compare" if row.kind == "guard" else f"only {row.n} items were answered by both models"
        return f"{row.name}: {why}"
    if row.kind == "slice":
        return (
            f"{row.name} loses {row.difference:+.4f} {row.unit} on {row.n} documents, more than {row.margin:g} is proven "
            f"(p {row.p_adjusted:.2g})"
        )
    at_most = (
        "" if row.kind == "guard" else f", at most {'unknown' if row.bound is None else format(row.bound, '+.4f')}"
    )
    return f"{row.name} {row.difference:+.4g}{at_most}, {row.margin:g} allowed"


def _too_few(n: int, spec: GateSpec) -> Decision:
    row = GateTest(
        name=PRIMARY, kind="primary", unit="bits per byte", margin=spec.margin, n=n, outcome="untested"
    )  # fmt: skip
    reason = f"only {n} documents were scored by both models, the gate wants {spec.min_documents}: champion stays"
    return Decision("keep", reason, num_documents=n, tests=(row,))


def _first(candidate: Evidence, spec: GateSpec) -> Decision:
    n, value = len(candidate.documents), candidate.bits_per_byte
    if spec.first_run == "hold":
        return Decision("keep", "no champion yet and gate.first_run is hold: nothing is promoted", num_documents=n)
    if not value < spec.max_first_bits_per_byte:
        reason = f"no champion yet, and {value:.4f} bits per byte is not below {spec.max_first_bits_per_byte:g}"
        return Decision("keep", f"{reason}: nothing is promoted", num_documents=n)
    reason = f"first champion: {value:.4f} bits per byte on {n} documents, below {spec.max_first_bits_per_byte:g}"
    return Decision("promote", reason, num_documents=n)
