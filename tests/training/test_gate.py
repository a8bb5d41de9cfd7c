from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluate.gate import Evidence, decide, upper_bound
from training.gate_spec import GateSpec


def evidence(nats: np.ndarray, size: int = 1000) -> Evidence:
    documents = {f"{i:032x}": (float(n), size) for i, n in enumerate(nats)}
    return Evidence(float(nats.sum() / (size * len(nats) * math.log(2))), documents)


def noisy(n: int, mean: float, spread: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, n)


def test_bootstrap_of_the_known_example_gives_the_known_interval() -> None:
    """n = 200, one model alone right on 10, the other on 2: the 97.5% bound of the difference is 0.075 (0.070 to 0.080).

    Scores of 1 nat a wrong answer and 1/ln 2 "bytes" an item make bits per byte the share of wrong answers.
    """
    ours, theirs = np.zeros(200), np.zeros(200)
    ours[:48] = theirs[:48] = 1
    ours[48:58] = 1  # wrong where the other is right
    theirs[58:60] = 1
    size = np.full(200, 1 / math.log(2))
    spec = GateSpec(confidence=0.975, replicates=10_000)
    bound = upper_bound(np.stack([ours, size], 1), np.stack([theirs, size], 1), spec)
    assert bound == pytest.approx(0.075, abs=0.0051)


def test_bootstrap_with_the_same_seed_gives_the_same_bound() -> None:
    scores = np.stack([noisy(50, 1500, 300, 1), np.full(50, 1000.0)], 1)
    other = scores * [1.01, 1]
    assert upper_bound(scores, other, GateSpec()) == upper_bound(scores, other, GateSpec())
    assert upper_bound(scores, other, GateSpec()) != upper_bound(scores, other, GateSpec(seed=1))


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
