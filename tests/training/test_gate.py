from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.evaluate.evidence import Benchmark, Evidence, benchmarks_of
from training.evaluate.gate import Decision, decide
from training.evaluate.gate_tests import GateTest
from training.evaluate.paired_bounds import compare
from training.gate_spec import GateSpec, GuardSpec


def evidence(nats: np.ndarray, size: int = 1000) -> Evidence:
    documents = {f"{i:032x}": (float(n), size) for i, n in enumerate(nats)}
    return Evidence(float(nats.sum() / (size * len(nats) * math.log(2))), documents)


def noisy(n: int, mean: float, spread: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, n)


def test_bootstrap_of_the_known_example_gives_the_known_interval() -> None:
    """n = 200, one model alone right on 10, the other on 2: the 97.5% bound of the difference is 0.075 (0.070 to 0.080).

    A score of 1 a wrong answer over 1 an item is the share of wrong answers.
    """
    ours, theirs = np.zeros(200), np.zeros(200)
    ours[:48] = theirs[:48] = 1
    ours[48:58] = 1  # wrong where the other is right
    theirs[58:60] = 1
    size = np.ones(200)
    spec = GateSpec(interval="percentile", replicates=10_000)
    bound = compare(np.stack([ours, size], 1), np.stack([theirs, size], 1), spec).upper(0.975)
    assert bound == pytest.approx(0.075, abs=0.0051)


def test_bootstrap_with_the_same_seed_gives_the_same_bound() -> None:
    scores = np.stack([noisy(50, 1500, 300, 1), np.full(50, 1000.0)], 1)
    other = scores * [1.01, 1]
    first, again, another = (compare(scores, other, GateSpec(seed=seed)).upper(0.95) for seed in (0, 0, 1))
    assert first == again != another


def test_gate_promotes_a_better_candidate() -> None:
    champion = noisy(100, 1500, 300, 1)
    verdict = decide(evidence(champion * 0.95), evidence(champion), GateSpec())
    assert verdict.decision == "promote"
    assert verdict.difference is not None
    assert verdict.difference < 0
    assert "100 documents" in verdict.reason


def test_gate_keeps_the_champion_against_a_worse_candidate() -> None:
    champion = noisy(100, 1500, 300, 1)
    verdict = decide(evidence(champion * 1.05), evidence(champion), GateSpec())
    assert verdict.decision == "keep"
    assert "champion stays" in verdict.reason


def test_gate_keeps_the_champion_when_noise_reaches_past_the_margin() -> None:
    champion = noisy(30, 1500, 300, 1)
    candidate = champion * 0.999 + noisy(30, 0, 200, 2)
    assert decide(evidence(candidate), evidence(champion), GateSpec()).decision == "keep"


def test_gate_keeps_the_champion_on_a_tie() -> None:
    champion = evidence(noisy(100, 1500, 300, 1))
    verdict = decide(champion, champion, GateSpec())
    assert verdict.decision == "keep"
    assert "a tie" in verdict.reason


def test_gate_keeps_the_champion_on_too_few_documents() -> None:
    champion = noisy(19, 1500, 300, 1)
    verdict = decide(evidence(champion * 0.5), evidence(champion), GateSpec(min_documents=20))
    assert verdict.decision == "keep"
    assert "only 19 documents" in verdict.reason


@pytest.mark.parametrize(
    ("nats", "policy", "decision"),
    [(1500.0, "promote", "promote"), (1500.0, "hold", "keep"), (9000.0, "promote", "keep")],
)
def test_first_run_follows_its_policy(nats: float, policy: str, decision: str) -> None:
    """9000 nats in 1000 bytes are 13 bits a byte: worse than no model at all."""
    assert decide(evidence(np.full(5, nats)), None, GateSpec(first_run=policy)).decision == decision  # type: ignore[arg-type]


def sliced(nats: np.ndarray, **slices: np.ndarray) -> Evidence:
    """slices: name -> which documents are in it."""
    plain = evidence(nats)
    ids = np.array(list(plain.documents))
    return replace(plain, slices={f"source={name}": frozenset(ids[inside]) for name, inside in slices.items()})


def answers(right: np.ndarray, graded: bool = False) -> Benchmark:
    return Benchmark({f"item-{i}": float(r) for i, r in enumerate(right)}, right_or_wrong=not graded)


def row(decision: Decision, name: str) -> GateTest:
    (found,) = (test for test in decision.tests if test.name == name)
    return found


def test_decision_keeps_every_test_as_a_row() -> None:
    champion = noisy(100, 1500, 300, 1)
    verdict = decide(sliced(champion * 0.95, a=np.arange(100) < 50), evidence(champion), GateSpec())
    assert [(t.kind, t.name, t.outcome) for t in verdict.tests] == [
        ("primary", "bits per byte", "passed"), ("slice", "slice source=a", "passed"),
        ("guard", "guard documents not scored", "passed"), ("better", "better: bits per byte", "shown"),
    ]  # fmt: skip
    first = verdict.tests[0]
    assert (first.difference, first.bound, first.n) == (verdict.difference, verdict.upper_bound, 100)
    assert first.p is not None
    assert first.p <= 0.05
    assert "2 more tests passed; shown to be better in bits per byte" in verdict.reason


def test_gate_keeps_the_champion_where_one_slice_is_proven_to_lose() -> None:
    """Better by 4 % on the whole, worse by 10 % in a quarter of the documents."""
    champion, few = noisy(200, 1500, 300, 1), np.arange(200) < 50
    candidate = champion * np.where(few, 1.1, 0.9) + noisy(200, 0, 20, 2)
    verdict = decide(sliced(candidate, few=few, many=~few), evidence(champion), GateSpec())
    assert verdict.difference is not None
    assert verdict.difference < 0
    assert verdict.decision == "keep"
    assert "slice source=few loses +0.2" in verdict.reason
    assert [row(verdict, f"slice source={name}").outcome for name in ("few", "many")] == ["failed", "passed"]
    assert decide(sliced(candidate, few=few), evidence(champion), GateSpec(slices=("length",))).decision == "promote"


def test_harm_of_slices_is_adjusted_for_their_number() -> None:
    champion, ones = noisy(400, 1500, 300, 1), np.arange(400)
    candidate = champion * np.where(ones % 20 == 0, 1.3, 0.95) + noisy(400, 0, 50, 2)
    parts = {f"part{i}": ones % 20 == i for i in range(20)}
    verdict = decide(sliced(candidate, **parts), evidence(champion), GateSpec(slice_margin=0.0))
    rows = [t for t in verdict.tests if t.kind == "slice"]
    assert len(rows) == 20
    (harmed,) = (t for t in rows if t.outcome == "failed")
    assert harmed.name == "slice source=part0"
    assert harmed.p == 1 / 8001, "drawn often enough for Holm to be able to find one of many"
    assert harmed.p_adjusted == pytest.approx(20 / 8001)


def test_small_slices_are_shown_and_decide_nothing() -> None:
    champion, few = noisy(100, 1500, 300, 1), np.arange(100) < 19
    candidate = champion * np.where(few, 1.5, 0.8)
    verdict = decide(sliced(candidate, few=few), evidence(champion), GateSpec())
    assert verdict.decision == "promote"
    assert (row(verdict, "slice source=few").outcome, row(verdict, "slice source=few").n) == ("untested", 19)


def test_gate_keeps_the_champion_where_a_benchmark_may_lose_more_than_its_margin() -> None:
    """500 items: 20 lost, 4 won. The loss of .032 is within .05, its bound is not within .04."""
    nats = noisy(100, 1500, 300, 1)
    right = np.arange(500) < 300
    ours = right.copy()
    ours[:20], ours[300:304] = False, True
    candidate = replace(evidence(nats * 0.9), benchmarks={"piqa": answers(ours)})
    champion = replace(evidence(nats), benchmarks={"piqa": answers(right)})
    for margin, decision in ((0.04, "keep"), (0.05, "promote")):
        verdict = decide(candidate, champion, GateSpec(benchmark_margins={"piqa": margin}))
        told = row(verdict, "benchmark piqa")
        assert (verdict.decision, told.n) == (decision, 500)
        assert told.difference == pytest.approx(0.032)
        assert told.bound == pytest.approx(0.0497, abs=2e-3)
        assert told.mcnemar_p == pytest.approx(0.00154, abs=1e-5)
        assert row(verdict, "better: benchmark piqa").outcome == "not shown"
    assert "shown to be better in bits per byte" in verdict.reason


def test_graded_benchmarks_are_compared_by_their_mean() -> None:
    nats, scores = noisy(100, 1500, 300, 1), np.random.default_rng(3).uniform(0.2, 0.8, 200)
    candidate = replace(evidence(nats * 0.9), benchmarks={"chrf": answers(scores - 0.03, graded=True)})
    champion = replace(evidence(nats), benchmarks={"chrf": answers(scores, graded=True)})
    told = row(decide(candidate, champion, GateSpec()), "benchmark chrf")
    assert (told.outcome, told.mcnemar_p) == ("failed", None)
    assert told.difference == pytest.approx(0.03)
    assert told.bound == pytest.approx(0.03)


@pytest.mark.parametrize("missing", ["items", "benchmark"])
def test_benchmark_that_one_model_has_not_answered_keeps_the_champion(missing: str) -> None:
    nats = noisy(100, 1500, 300, 1)
    ours = {"piqa": answers(np.ones(49))} if missing == "items" else {}
    candidate = replace(evidence(nats * 0.9), benchmarks=ours)
    champion = replace(evidence(nats), benchmarks={"piqa": answers(np.ones(60))})
    verdict = decide(candidate, champion, GateSpec())
    assert verdict.decision == "keep"
    assert f"benchmark piqa: only {49 if ours else 0} items were answered by both models" in verdict.reason


def test_documents_that_the_candidate_alone_cannot_score_keep_the_champion() -> None:
    """A model that fails on what it finds hard would otherwise be compared on the rest."""
    champion = evidence(noisy(100, 1500, 300, 1))
    documents = {i: (nats * 0.9, size) for i, (nats, size) in list(champion.documents.items())[:-3]}
    verdict = decide(replace(champion, documents=documents), champion, GateSpec())
    assert verdict.decision == "keep"
    assert "guard documents not scored +3, 0 allowed" in verdict.reason


@pytest.mark.parametrize(
    ("guards", "ours", "decision"),
    [
        ({"max_bytes_ratio": 1.0}, {"weight_bytes": 1000}, "promote"),
        ({"max_bytes_ratio": 1.0}, {"weight_bytes": 1001}, "keep"),
        ({"max_latency_ratio": 1.5}, {"seconds_per_token": 0.0149}, "promote"),
        ({"max_latency_ratio": 1.5}, {"seconds_per_token": 0.0151}, "keep"),
        ({"max_latency_ratio": 1.5}, {}, "keep"),
        ({}, {"weight_bytes": 10**9, "seconds_per_token": 1.0}, "promote"),
        ({"max_worst_slice": 0.1}, {}, "promote"),
        ({"max_worst_slice": 0.03}, {}, "keep"),
    ],
)
def test_guards_hold_what_they_are_asked_for(guards: dict[str, float], ours: dict[str, float], decision: str) -> None:
    champion, few = noisy(100, 1500, 300, 1), np.arange(100) < 30
    candidate = sliced(champion * np.where(few, 1.02, 0.8), few=few)
    beaten = replace(evidence(champion), weight_bytes=1000, seconds_per_token=0.01)
    spec = GateSpec(guards=GuardSpec(**guards))
    assert decide(replace(candidate, **ours), beaten, spec).decision == decision  # type: ignore[arg-type]


def test_settings_of_gates_of_before_are_still_read() -> None:
    before = {"margin": 0.01, "confidence": 0.95, "replicates": 2000, "min_documents": 20, "first_run": "promote",
              "max_first_bits_per_byte": 8.0, "candidate": "best", "seed": 0}  # fmt: skip
    assert GateSpec.model_validate(before) == GateSpec()


def test_items_that_the_candidate_alone_has_no_score_of_keep_the_champion() -> None:
    nats = noisy(100, 1500, 300, 1)
    ours, theirs = answers(np.full(198, 0.9), graded=True), answers(np.full(200, 0.5), graded=True)
    candidate = replace(evidence(nats * 0.9), benchmarks={"chrf": ours})
    verdict = decide(candidate, replace(evidence(nats), benchmarks={"chrf": theirs}), GateSpec())
    assert verdict.decision == "keep"
    assert row(verdict, "benchmark chrf").outcome == "failed"


def test_items_of_a_table_are_right_or_wrong_or_graded(tmp_path: Path) -> None:
    """An item without a finite score is missing, never a good one."""
    rows = [
        ("a", "1", True, 1.0),
        ("a", "2", False, 0.0),
        ("b", "1", None, -2.5),
        ("b", "2", None, None),
        ("b", "3", None, math.nan),
    ]
    columns = dict(zip(("benchmark", "id", "right", "value"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    assert benchmarks_of(tmp_path / "items.parquet") == {
        "a": Benchmark({"1": 1.0, "2": 0.0}, right_or_wrong=True), "b": Benchmark({"1": -2.5}, right_or_wrong=False)
    }  # fmt: skip


def test_models_worse_by_the_margin_pass_as_seldom_as_stated() -> None:
    """400 nights of 60 documents, a quarter of which carry all of the loss: 20 promotions in 400 are alpha, 33 three deviations
    more. The percentile interval lets more pass."""
    rng = np.random.default_rng(7)
    lost = np.where(rng.random(20_000) < 0.25, rng.exponential(0.1, 20_000), 0) + rng.normal(0, 0.02, 20_000)
    lost += 0.01 - lost.mean()
    promoted = dict.fromkeys(("studentized", "percentile"), 0)
    for night in range(400):
        drawn = rng.choice(lost, 60)
        champion = rng.normal(1500, 100, 60)
        sides = evidence(champion + drawn * 1000 * math.log(2)), evidence(champion)
        for interval in promoted:
            spec = GateSpec(interval=interval, replicates=400, seed=night // 40)  # type: ignore[arg-type]
            promoted[interval] += decide(*sides, spec).decision == "promote"
    assert promoted["studentized"] <= 33
    assert promoted["percentile"] > promoted["studentized"] + 5
