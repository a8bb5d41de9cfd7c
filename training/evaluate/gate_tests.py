"""The tests behind a decision, a row each. In every row a difference above 0 means that the candidate is worse.

Which of them must hold, and why the ones are adjusted for their number and the others need not be: docs/gate.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from spark_jobs.manifests import Frozen
from training.evaluate.evidence import Benchmark, Evidence
from training.evaluate.holm import holm
from training.evaluate.paired_bounds import Paired, compare
from training.evaluate.paired_shares import Shares
from training.gate_spec import GateSpec

PRIMARY = "bits per byte"
MOST_UNTESTED = 20  # small slices that are listed
DRAWS_BEYOND = 20  # replicates expected beyond the smallest p that Holm asks for


class GateTest(Frozen):
    """difference: candidate minus champion, above 0 is worse. bound: of it, upper for what must not be worse, lower for
    the harm of a slice; for a guard the difference itself. None: infinite, or not asked.

    outcome: passed and failed decide; untested (too few) keeps the champion, but for a slice, where it says nothing.
    shown, not shown: of superiority, which decides nothing.
    """

    name: str
    kind: Literal["primary", "benchmark", "slice", "guard", "better"]
    unit: str
    difference: float | None = None
    bound: float | None = None
    margin: float = 0.0
    p: float | None = None
    p_adjusted: float | None = None
    mcnemar_p: float | None = None
    n: int = 0
    outcome: Literal["passed", "failed", "untested", "shown", "not shown"]

    @property
    def refuses(self) -> bool:
        return self.outcome == "failed" or (self.outcome == "untested" and self.kind != "slice")


def shared_scores(candidate: Evidence, champion: Evidence, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of the same documents, float64 (N, 2) of each model."""
    bits = np.array([1 / math.log(2), 1.0])
    ours, theirs = ([model.documents[i] for i in ids] for model in (candidate, champion))
    return np.array(ours, np.float64).reshape(-1, 2) * bits, np.array(theirs, np.float64).reshape(-1, 2) * bits


def primary_test(paired: Paired, n: int, spec: GateSpec) -> GateTest:
    """Not worse than the champion by `margin`."""
    bound = paired.upper(spec.confidence)
    return GateTest(
        name=PRIMARY, kind="primary", unit="bits per byte", difference=paired.difference, bound=_finite(bound),
        margin=spec.margin, p=paired.p_worse(spec.margin), n=n, outcome="passed" if bound < spec.margin else "failed",
    )  # fmt: skip


@dataclass(frozen=True)
class OnItems:
    """Two models on one benchmark: on the n items that both have a score of. num_lost: the champion alone has one."""

    name: str
    n: int
    num_lost: int
    compared: Paired | Shares


def on_items(candidate: Evidence, champion: Evidence, spec: GateSpec) -> list[OnItems]:
    """Every benchmark that one of them has answered; `n` is 0 where the other has not."""
    names = sorted(candidate.benchmarks.keys() | champion.benchmarks.keys())
    nothing = Benchmark({})
    return [
        _on_items(name, candidate.benchmarks.get(name, nothing), champion.benchmarks.get(name, nothing), spec)
        for name in names
    ]


def _on_items(name: str, ours: Benchmark, theirs: Benchmark, spec: GateSpec) -> OnItems:
    pairs = [(ours.values[i], theirs.values[i]) for i in sorted(ours.values.keys() & theirs.values.keys())]
    num_lost = len(theirs.values.keys() - ours.values.keys())
    if len(pairs) < 2 or (ours.right_or_wrong and theirs.right_or_wrong):
        only_ours, only_theirs = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
        return OnItems(name, len(pairs), num_lost, Shares(only_ours, only_theirs, max(1, len(pairs))))
    one = np.ones(len(pairs))
    first, second = (np.stack([-np.array(scores), one], axis=1) for scores in zip(*pairs, strict=True))  # more is worse
    return OnItems(name, len(pairs), num_lost, compare(first, second, spec))


def benchmark_test(told: OnItems, spec: GateSpec) -> GateTest:
    """Not worse than the champion by the benchmark's margin, and no item without a score that the champion has one of."""
    margin, one = spec.benchmark_margins.get(told.name, spec.benchmark_margin), told.compared
    row = GateTest(
        name=f"benchmark {told.name}", kind="benchmark", unit="score", margin=margin, n=told.n, outcome="untested"
    )
    if told.n < spec.min_items:
        return row
    bound = one.upper(spec.confidence)
    found = {
        "difference": one.difference,
        "bound": _finite(bound),
        "p": one.p_worse(margin),
        "mcnemar_p": one.mcnemar_p if isinstance(one, Shares) else None,
        "outcome": "passed" if bound < margin and not told.num_lost else "failed",
    }
    return row.model_copy(update=found)


def slice_tests(candidate: Evidence, champion: Evidence, ids: Sequence[str], spec: GateSpec) -> list[GateTest]:
    """Is a slice proven to lose more than `slice_margin`? Holm over all that are large enough. A slice of all documents
    would ask again what the first test asks, so there is none."""
    parts = {
        name: sorted(members.intersection(ids))
        for name, members in candidate.slices.items()
        if name.partition("=")[0] in spec.slices
    }
    parts = {name: members for name, members in parts.items() if 0 < len(members) < len(ids)}
    tested = {name: members for name, members in parts.items() if len(members) >= spec.min_slice_documents}
    untested = sorted(parts.keys() - tested.keys(), key=lambda name: (-len(parts[name]), name))[:MOST_UNTESTED]
    replicates = max(spec.replicates, math.ceil(DRAWS_BEYOND * len(tested) / (1 - spec.confidence)))
    paired = {name: compare(*shared_scores(candidate, champion, m), spec, replicates) for name, m in tested.items()}
    harm = [one.p_harmless(spec.slice_margin) for one in paired.values()]
    rows = [
        GateTest(
            name=f"slice {name}", kind="slice", unit="bits per byte", difference=one.difference,
            bound=_finite(one.lower(spec.confidence)), margin=spec.slice_margin, p=p, p_adjusted=adjusted,
            n=len(tested[name]), outcome="failed" if adjusted <= 1 - spec.confidence else "passed",
        )
        for (name, one), p, adjusted in zip(paired.items(), harm, holm(harm), strict=True)
    ]  # fmt: skip
    return rows + [_untested(name, *shared_scores(candidate, champion, parts[name]), spec) for name in untested]


def _untested(name: str, ours: np.ndarray, theirs: np.ndarray, spec: GateSpec) -> GateTest:
    lost = ours[:, 0].sum() / ours[:, 1].sum() - theirs[:, 0].sum() / theirs[:, 1].sum()
    return GateTest(
        name=f"slice {name}", kind="slice", unit="bits per byte", difference=float(lost), margin=spec.slice_margin,
        n=len(ours), outcome="untested",
    )  # fmt: skip


def guard_tests(
    candidate: Evidence, champion: Evidence, slices: Sequence[GateTest], num_lost: int, spec: GateSpec
) -> list[GateTest]:
    """Limits without statistics. num_lost: documents that the champion has a finite score for and the candidate has not;
    none may be."""
    guards = spec.guards
    rows = [_guard("documents not scored", "documents", float(num_lost), 0.0)]
    asked: Mapping[str, tuple[float | None, float | None, float | None]] = {
        "bytes on disk": (guards.max_bytes_ratio, candidate.weight_bytes, champion.weight_bytes),
        "seconds a token": (guards.max_latency_ratio, candidate.seconds_per_token, champion.seconds_per_token),
    }
    for name, (limit, ours, theirs) in asked.items():
        if limit is not None:
            rows.append(_guard(name, "ratio", ours / theirs if ours is not None and theirs else None, limit))
    if guards.max_worst_slice is not None:
        lost = [row.difference for row in slices if row.outcome != "untested" and row.difference is not None]
        rows.append(_guard("worst slice", "bits per byte", max(lost, default=0.0), guards.max_worst_slice))
    return rows


def _guard(name: str, unit: str, value: float | None, limit: float) -> GateTest:
    outcome: Literal["passed", "failed", "untested"] = "untested" if value is None else "failed"
    if value is not None and value <= limit:
        outcome = "passed"
    return GateTest(
        name=f"guard {name}", kind="guard", unit=unit, difference=value, bound=value, margin=limit, outcome=outcome
    )


def better_tests(primary: Paired, n: int, benchmarks: Sequence[OnItems], spec: GateSpec) -> list[GateTest]:
    """On what is the candidate shown to be better? Holm over bits per byte and all benchmarks: these are claims."""
    rows: list[tuple[str, str, Paired | Shares, int]] = [(PRIMARY, "bits per byte", primary, n)]
    rows += [(f"benchmark {b.name}", "score", b.compared, b.n) for b in benchmarks if b.n >= spec.min_items]
    p_values = [one.p_no_better() for _, _, one, _ in rows]
    return [
        GateTest(
            name=f"better: {name}", kind="better", unit=unit, difference=one.difference, p=p, p_adjusted=adjusted, n=count,
            outcome="shown" if adjusted <= 1 - spec.confidence else "not shown",
        )
        for (name, unit, one, count), p, adjusted in zip(rows, p_values, holm(p_values), strict=True)
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
