"""What one look found, as facts: every check, and the histograms behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from spark_jobs.manifests import Frozen
from training.manifests import WatchReference
from training.watch.baseline import Baseline, traffic_baseline, training_baseline
from training.watch.bins import LENGTH_EDGES, NATS_EDGES, SHARE_EDGES, bin_of
from training.watch.compare import Check, common_languages, compare, language_bins
from training.watch.episodes import Sight
from training.watch.reference import load
from training.watch.sketch import TrafficLine
from training.watch.spec import WatchSpec
from training.watch.traffic import Traffic, hourly, read_lines, total

Status = Literal["ok", "alarm", "too few", "no traffic", "no champion"]


class LookSpec(Frozen):
    """One look: the settings, the window (start < at <= end, ISO, UTC), and digests of the snapshot and of the lines found."""

    watch: WatchSpec
    model: str
    reference: str
    start: str
    end: str
    traffic_sha256: str


class Distribution(Frozen):
    """One histogram of the window beside that of the baseline. labels: lower edges, or names."""

    name: str
    labels: tuple[str, ...]
    live: tuple[float, ...]
    reference: tuple[float, ...]


class WatchFacts(Frozen):
    """other_models: requests that others answered in the window. num_unreadable: lines that no server of ours wrote."""

    pipeline: str
    model: str
    start: str
    end: str
    against: str
    status: Status
    num_requests: int
    num_errors: int
    replicas: int
    num_unreadable: int = 0
    other_models: dict[str, int] = Field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    distributions: tuple[Distribution, ...] = ()

    @property
    def alarms(self) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.outcome == "drift")


def status_of(checks: Sequence[Check]) -> Status:
    """too few: not one check had enough requests."""
    outcomes = {check.outcome for check in checks}
    if "drift" in outcomes:
        return "alarm"
    return "ok" if "ok" in outcomes else "too few"


def look(
    pipeline: str, folder: Path, traffic: Traffic, reference: WatchReference, spec: WatchSpec, start: datetime, end: datetime
) -> WatchFacts:  # fmt: skip
    """The window's lines of the reference's model, compared. folder: of the traffic. There is a line of this model."""
    window = total(traffic.of(reference.model), reference.model)
    baseline = baseline_of(folder, reference, spec, start)
    checks = compare(window, baseline, spec)
    return WatchFacts(
        pipeline=pipeline,
        model=reference.model,
        start=start.isoformat(timespec="seconds"),
        end=end.isoformat(timespec="seconds"),
        against=spec.against,
        status=status_of(checks),
        num_requests=window.requests,
        num_errors=window.errors,
        replicas=traffic.replicas,
        num_unreadable=traffic.num_unreadable,
        other_models=traffic.other_models(reference.model),
        checks=checks,
        distributions=distributions(window, baseline),
    )


def baseline_of(folder: Path, reference: WatchReference, spec: WatchSpec, start: datetime) -> Baseline:
    """The snapshot, or the traffic of the days before the window with what only the snapshot knows."""
    snapshot = training_baseline(*load(reference))
    if spec.against == "training":
        return snapshot
    since = start - timedelta(days=spec.baseline_days)
    prompts = hourly(folder, since, start)
    answers = hourly(folder, since, start, reference.model)
    whole = total(prompts) if prompts else None
    return traffic_baseline(prompts, total(answers, reference.model) if answers else None, snapshot, whole)


def sights(facts: WatchFacts) -> dict[str, Sight]:
    """What the look saw of each check, for the episodes."""
    words: Mapping[str, Sight] = {"drift": "alarm", "ok": "clear"}
    return {check.name: words.get(check.outcome, "unknown") for check in facts.checks}


def distributions(window: TrafficLine, baseline: Baseline) -> tuple[Distribution, ...]:
    """Histograms worth a look, trimmed to the bins that anything is in."""
    live, reference = language_bins(window.languages, baseline.languages)
    codes = (*common_languages(baseline.languages), "other")
    found = [Distribution(name="language", labels=codes, live=tuple(live), reference=tuple(reference))]
    for name, edges, told, known in (
        ("prompt bytes", LENGTH_EDGES, window.prompt_bytes, baseline.prompt_bytes),
        ("prompt tokens", LENGTH_EDGES, window.prompt_tokens, baseline.prompt_tokens),
        ("answer tokens", LENGTH_EDGES, window.answer_tokens, baseline.answer_tokens),
        ("nats a prompt token", NATS_EDGES, window.prompt_nats_per_token, _nats_bins(baseline)),
        ("repeated 4-grams of an answer", SHARE_EDGES, window.repetition_shares, baseline.repetition_shares),
    ):
        found.append(_trimmed(name, edges, told, known))
    return tuple(one for one in found if sum(one.live) or sum(one.reference))


def _nats_bins(baseline: Baseline) -> tuple[int, ...]:
    counts = [0] * len(NATS_EDGES)
    for nats in baseline.nats:
        counts[bin_of(float(nats.mean()), NATS_EDGES)] += 1
    return tuple(counts)


def _trimmed(name: str, edges: Sequence[float], live: Sequence[float], reference: Sequence[float]) -> Distribution:
    reference = tuple(reference) or (0.0,) * len(edges)
    used = [i for i in range(len(edges)) if live[i] or reference[i]]
    first, last = (used[0], used[-1] + 1) if used else (0, 0)
    return Distribution(
        name=name,
        labels=tuple(f"{edge:g}" for edge in edges[first:last]),
        live=tuple(float(n) for n in live[first:last]),
        reference=tuple(float(n) for n in reference[first:last]),
    )


def window_of(folder: Path, spec: WatchSpec, now: datetime) -> tuple[datetime, datetime, Traffic]:
    """Start and end of the window up to `now`, to the second, and its lines."""
    end = now.replace(microsecond=0)
    start = end - timedelta(minutes=spec.window_minutes)
    return start, end, read_lines(folder, start, end)
