"""How often the gate errs: simulated nights with a known truth, decided by the gate's own `decide`.

    python -m benchmarks.gate [--nights 1000] [--paragraphs 200] [--smoke]

A night draws documents from a population, so what is true of the population is known to the last digit: the candidate's
scores are shifted by a constant number of bits per byte until its loss is exactly the one simulated. Populations: real
scores of real models (benchmarks/gate_scores.py) and three laws that have names. Losses, with a margin of 0.01 bits per byte:

    0                nothing lost: a promotion is right
    0.01, at margin  the worst case of what must not be promoted: a promotion is a FALSE PROMOTION, at most alpha wanted
    0.02, beyond     a true regression: a promotion is a MISSED REGRESSION

Two intervals: `percentile`, and `studentized`, which the gate uses. Then shares of right answers, and harm found in slices
that have none beyond the margin. All shares with 95 % Wilson intervals. The last line is JSON; its rates are those of the worst of all populations and
of the benchmark, with the gate's own interval and as many documents or items as a night has by default (200), or more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

import numpy as np

from benchmarks.gate_scores import Pool, pools
from training.evaluate.evidence import Benchmark, Evidence
from training.evaluate.gate import Decision, decide
from training.gate_spec import GateSpec
from training.metrics.proportion import wilson_interval
from training.specs import EvaluateSpec

LN2 = math.log(2)
NUMBERS = (20, 50, 200)  # documents of a night; 20 is the fewest that the gate takes, 200 what a night scores
LOSSES = {"0": 0.0, "at margin": 0.01, "beyond": 0.02}
SEEDS = 20  # the resampling has a seed of its own in each of as many blocks of nights
POPULATION = 20_000  # documents of a law


@dataclass(frozen=True)
class Cell:
    """promoted: of so many nights."""

    population: str
    n: int
    loss: str
    interval: str
    promoted: int
    nights: int

    @property
    def rate(self) -> float:
        return self.promoted / self.nights


def laws(rng: np.random.Generator) -> list[Pool]:
    """normal: documents of one size, differences with a spread of 0.05. uneven: sizes over three orders of magnitude.
    ruined: the candidate gains a little everywhere and loses much on one document in twelve, which a few draws may miss."""
    even, uneven = np.full(POPULATION, 1000.0), np.ceil(rng.lognormal(6, 1.2, POPULATION))
    theirs = rng.normal(2.0, 0.3, POPULATION)
    normal, few = rng.normal(0, 0.05, POPULATION), (rng.random(POPULATION) < 1 / 12) * rng.exponential(0.12, POPULATION)
    found = (("normal", even, normal), ("uneven", uneven, normal), ("ruined", even, few + normal / 10))
    return [
        Pool(name, theirs * size * LN2, (theirs + lost) * size * LN2, size, np.array(["law"] * POPULATION))
        for name, size, lost in found
    ]


def with_loss(pool: Pool, loss: float) -> Pool:
    """The same population, whose candidate loses exactly `loss` bits per byte."""
    found = (pool.candidate - pool.champion).sum() / (pool.size.sum() * LN2)
    return Pool(pool.name, pool.champion, pool.candidate + (loss - found) * pool.size * LN2, pool.size, pool.source)


def night(pool: Pool, drawn: np.ndarray, sliced: bool = False) -> tuple[Evidence, Evidence]:
    """Candidate and champion on the documents drawn; one drawn twice is two."""
    ids = [f"{i:06d}" for i in range(len(drawn))]
    sides = []
    for nats in (pool.candidate[drawn], pool.champion[drawn]):
        scores = zip(nats.tolist(), pool.size[drawn].tolist(), strict=True)
        sides.append(Evidence(0.0, dict(zip(ids, scores, strict=True))))
    slices: dict[str, set[str]] = {}
    for doc_id, source in zip(ids, pool.source[drawn], strict=True) if sliced else ():
        slices.setdefault(f"source={source}", set()).add(doc_id)
    return Evidence(0.0, sides[0].documents, {k: frozenset(v) for k, v in slices.items()}), sides[1]


def decisions(pool: Pool, n: int, nights: int, spec: GateSpec, sliced: bool = False) -> Iterator[Decision]:
    rng = np.random.default_rng(n)
    for number in range(nights):
        drawn = rng.integers(len(pool.size), size=n)
        seeded = spec.model_copy(update={"seed": number * SEEDS // nights})
        yield decide(*night(pool, drawn, sliced), seeded)


def on_documents(populations: Iterable[Pool], numbers: Iterable[int], nights: int) -> Iterator[Cell]:
    for pool in populations:
        for interval in ("percentile", "studentized"):
            spec = GateSpec(interval=interval, slices=())  # type: ignore[arg-type]
            for n in numbers:
                for loss, value in LOSSES.items():
                    told = decisions(with_loss(pool, value), n, nights, spec)
                    yield Cell(pool.name, n, loss, interval, sum(d.decision == "promote" for d in told), nights)


def on_items(numbers: Iterable[int], nights: int) -> Iterator[Cell]:
    """A benchmark on which 5 items in a hundred change either way, and so many more are lost; margin 0.02. The documents
    have gained, so the benchmark alone decides."""
    rng = np.random.default_rng(1)
    documents = {f"{i:06d}": (1000.0, 500.0) for i in range(20)}
    champion = Evidence(0.0, documents)
    candidate = Evidence(0.0, {i: (nats * 0.9, size) for i, (nats, size) in documents.items()})
    for n in numbers:
        for loss, value in (("0", 0.0), ("at margin", 0.02), ("beyond", 0.04)):
            promoted = 0
            for _ in range(nights):
                kind = rng.choice(3, n, p=[0.05, 0.05 + value, 0.9 - value])
                theirs = np.where(kind == 0, 0, np.where(kind == 1, 1, rng.integers(0, 2, n)))
                ours = np.where(kind == 0, 1, np.where(kind == 1, 0, theirs))
                sides = [
                    Evidence(0.0, side.documents, benchmarks={"items": Benchmark(dict(enumerate_ids(right)))})
                    for side, right in ((candidate, ours), (champion, theirs))
                ]
                promoted += decide(sides[0], sides[1], GateSpec(replicates=100)).decision == "promote"
            yield Cell("right answers", n, loss, "score", promoted, nights)


def enumerate_ids(right: np.ndarray) -> Iterator[tuple[str, float]]:
    return ((f"item-{i}", float(value)) for i, value in enumerate(right))


def false_harm(pool: Pool, n: int, nights: int) -> tuple[int, int]:
    """Nights in which some slice is said to lose more than `slice_margin`, where each source loses exactly that: (all, all
    without adjusting for their number)."""
    spec = GateSpec()
    candidate = pool.candidate.copy()
    for source in np.unique(pool.source):
        inside = pool.source == source
        bits = pool.size[inside].sum() * LN2
        found = (pool.candidate - pool.champion)[inside].sum() / bits
        candidate[inside] += (spec.slice_margin - found) * pool.size[inside] * LN2
    at_margin = Pool(pool.name, pool.champion, candidate, pool.size, pool.source)
    adjusted = plain = 0
    for decision in decisions(at_margin, n, nights, spec, sliced=True):
        rows = [row for row in decision.tests if row.kind == "slice" and row.outcome != "untested"]
        adjusted += any(row.outcome == "failed" for row in rows)
        plain += any(row.p is not None and row.p <= 1 - spec.confidence for row in rows)
    return adjusted, plain


def share(hits: int, n: int) -> str:
    low, high = wilson_interval(hits, n)
    return f"{hits / n:.3f} [{low:.3f}, {high:.3f}]"


def told(cells: Iterable[Cell]) -> list[Cell]:
    """Print the table as it comes, a line for every three cells."""
    say(
        "| population | documents | interval | loss 0: promoted | at margin: false promotion | beyond: missed regression |"
    )
    say("|---|---|---|---|---|---|")
    found: list[Cell] = []
    for cell in cells:
        found.append(cell)
        if len(found) % len(LOSSES) == 0:
            shares = " | ".join(share(c.promoted, c.nights) for c in found[-len(LOSSES) :])
            say(f"| {cell.population} | {cell.n} | {cell.interval} | {shares} |")
    return found


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1000, help="of each cell of the table")
    parser.add_argument("--paragraphs", type=int, default=200, help="scored of each source, of real texts")
    parser.add_argument("--smoke", action="store_true", help="a few nights, to see that it runs")
    asked = parser.parse_args()
    nights, numbers = (40, (20,)) if asked.smoke else (asked.nights, NUMBERS)
    began = time.monotonic()
    say(f"{datetime.now(UTC):%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores, {nights} nights a cell")
    real = pools(20 if asked.smoke else asked.paragraphs, 0)
    for pool in real:
        lost = (pool.candidate - pool.champion) / (pool.size * LN2)
        say(
            f"real scores, {pool.name}: {len(pool.size)} documents, spread of the difference {lost.std():.4f} bits per byte"
        )
    documents = on_documents([*real, *laws(np.random.default_rng(0))], numbers, nights)
    cells = told(chain(documents, on_items([100] if asked.smoke else [100, 500, 2000], nights)))
    for pool in real:
        adjusted, plain = false_harm(pool, 200, nights)
        say(
            f"slices at their margin, {pool.name}, 200 documents: harm found in {share(adjusted, nights)} of the nights, "
            f"{share(plain, nights)} without adjusting for their number"
        )
    used = [c for c in cells if c.interval in (GateSpec().interval, "score")]
    used = [c for c in used if c.n >= EvaluateSpec().max_documents] or used
    worst = {loss: max(c.rate for c in used if c.loss == loss) for loss in ("at margin", "beyond")}
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    facts = {
        "false_promotion": round(worst["at margin"], 4),
        "missed_regression": round(worst["beyond"], 4),
        "alpha": round(1 - GateSpec().confidence, 4),
        "nights": sum(c.nights for c in cells),
    }
    say(json.dumps(facts))


if __name__ == "__main__":
    main()
