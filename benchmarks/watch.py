"""How often the watch over live traffic alarms without reason, and how soon it finds a real drift.

    python -m benchmarks.watch [--windows 200] [--streams 3]

Usual traffic is drawn from one half of the paragraphs of English books and speeches, the reference from the other half; the
model is stories260k. False alarms: windows of usual traffic, with the default settings. Drifts: streams of six requests a
minute, looked at every 15 minutes over the last hour as deployed, in which what arrives (or what the model answers) changes
at one moment; found within three hours counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from benchmarks.watch_material import Material, Prompt, make
from training.metrics.proportion import wilson_interval
from training.watch.compare import compare
from training.watch.sketch import TrafficLine, TrafficSketch, merge
from training.watch.spec import WatchSpec

SIZES = (200, 400, 1000)  # requests in a window without a difference
RATE, LOOK, WINDOW, LIMIT = 6, 15, 60, 180  # requests a minute; minutes
SESSION = 10  # consecutive paragraphs that one reader asks about


@dataclass(frozen=True)
class Drift:
    """share of requests that are changed: prompts from `pool`, answers from `answers`; failing: share that gets no answer."""

    name: str
    pool: str = "usual"
    answers: str = "usual"
    share: float = 1.0
    failing: float = 0.0


DRIFTS = (
    Drift("Japanese prompts", pool="japanese"),
    Drift("German prompts", pool="german"),
    Drift("a third of prompts German", pool="german", share=1 / 3),
    Drift("prompts a quarter as long", pool="shorter"),
    Drift("prompts four times as long", pool="longer"),
    Drift("Python documentation", pool="python docs"),
    Drift("half Python documentation", pool="python docs", share=0.5),
    Drift("all capitals", pool="shouting"),
    Drift("attention lost: answers run in circles", answers="circling"),
    Drift("one request in twelve fails", failing=1 / 12),
)


def window(material: Material, prompts: Sequence[Prompt], rng: np.random.Generator) -> TrafficLine:
    sketch = TrafficSketch("models/benchmark")
    answers = material.answers["usual"]
    for prompt in prompts:
        sketch.add(prompt.text, prompt.ids, answers[rng.integers(len(answers))], prompt.nats, "length")
    return TrafficLine.model_validate_json(json.dumps(sketch.flush()))


def alarms(line: TrafficLine, material: Material, spec: WatchSpec) -> list[str]:
    return [check.name for check in compare(line, material.baseline, spec) if check.outcome == "drift"]


def false_alarms(material: Material, spec: WatchSpec, num_windows: int, session: int) -> tuple[int, Counter[str]]:
    """Windows that alarmed, and which checks did. session: paragraphs in a row; 1: each is drawn alone."""
    rng = np.random.default_rng([2, session])
    pool, found, checks = material.pools["usual"], 0, Counter[str]()
    for i in range(num_windows):
        starts = rng.integers(0, len(pool) - session + 1, SIZES[i % len(SIZES)] // session)
        told = alarms(window(material, [pool[s + k] for s in starts for k in range(session)], rng), material, spec)
        found += bool(told)
        checks.update(told)
    return found, checks


def detect(drift: Drift, material: Material, spec: WatchSpec, seed: int) -> tuple[int | None, list[str]]:
    """Minutes from the change to the first alarm (None: not within LIMIT), and what alarmed. One usual hour goes before."""
    rng = np.random.default_rng([3, seed])
    lines: list[dict[str, Any]] = []
    for minute in range(-WINDOW, LIMIT + 1):
        changed = minute > 0
        lines.append(_minute(drift if changed else Drift("none"), material, rng))
        if changed and minute % LOOK == 0:
            line = TrafficLine.model_validate_json(json.dumps(merge(lines[-WINDOW:])))
            told = alarms(line, material, spec)
            if told:
                return minute, told
    return None, []


def _minute(drift: Drift, material: Material, rng: np.random.Generator) -> dict[str, Any]:
    sketch = TrafficSketch("models/benchmark")
    for _ in range(rng.poisson(RATE)):
        changed = rng.random() < drift.share
        pool = material.pools[drift.pool if changed else "usual"]
        answers = material.answers[drift.answers if changed else "usual"]
        if rng.random() < drift.failing:
            sketch.error()
            continue
        prompt = pool[rng.integers(len(pool))]
        sketch.add(prompt.text, prompt.ids, answers[rng.integers(len(answers))], prompt.nats, "length")
    return sketch.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=200, help="without a difference, of each kind")
    parser.add_argument("--streams", type=int, default=3, help="of each drift")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    print(
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    )
    material, spec = make(), WatchSpec()
    print(
        f"material in {time.monotonic() - started:.0f} s; alpha {spec.alpha:g} a window, at least {spec.min_requests} requests"
    )
    num_false = 0
    for session, told in (
        (1, "each prompt drawn alone"),
        (SESSION, f"readers that ask about {SESSION} paragraphs in a row"),
    ):
        found, checks = false_alarms(material, spec, arguments.windows, session)
        low, high = wilson_interval(found, arguments.windows)
        print(
            f"{told}: {found} of {arguments.windows} windows alarm (95 %: {low:.2%} to {high:.2%}) {dict(checks) or ''}",
            flush=True,
        )
        num_false += found if session == 1 else 0
    num_found = 0
    for drift in DRIFTS:
        results = [detect(drift, material, spec, seed) for seed in range(arguments.streams)]
        delays = [delay for delay, _ in results if delay is not None]
        num_found += len(delays)
        by = Counter(name for _, names in results for name in names)
        median = f"{np.median(delays):.0f} min" if delays else "-"
        print(
            f"{drift.name:<40} found {len(delays)} of {len(results)}, median {median:>7}, longest {max(delays, default=0):>3} min, by {dict(by)}",
            flush=True,
        )
    told = {
        "false_alarms": num_false,
        "windows": arguments.windows,
        "detected": num_found,
        "drifts": len(DRIFTS) * arguments.streams,
    }
    print(f"{time.monotonic() - started:.0f} s")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
