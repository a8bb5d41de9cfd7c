"""A window of traffic against the snapshot: each check with value, threshold, p-value, number of requests and outcome.

Two things must hold before a check says "drift": the difference is larger than its threshold (it matters), and it is larger
than chance explains (it is there). The second is held over all checks of the window together: p-values are adjusted by
Holm's method, so that a window without any difference alarms with a chance of at most alpha. Too few requests: "too few",
whatever the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from spark_jobs.manifests import Frozen
from training.evaluate.holm import holm
from training.metrics.proportion import wilson_interval
from training.metrics.score import Number
from training.watch.baseline import Baseline
from training.watch.distances import Numbers, compared, compared_clusters, largest_gap, stability_index
from training.watch.language import UNKNOWN
from training.watch.prompt_perplexity import perplexity_ratio
from training.watch.sketch import TrafficLine
from training.watch.spec import CheckName, WatchSpec

CLUSTER_REPLICATES = 400
RARE = 0.01  # languages below this share of the reference are one bin
Outcome = Literal["ok", "drift", "too few", "not compared"]


class Check(Frozen):
    """One comparison. value: what is held against `threshold`; by_chance: what it would be on average without a difference.

    low, high: 95 % interval of `value` where it has one. p: chance of a value as large without a difference (of a share: where
    it is at the threshold); p_adjusted: over all checks of the window that were compared. n: units behind the value.
    """

    name: CheckName
    measure: str
    value: Number
    threshold: float
    by_chance: Number
    low: Number
    high: Number
    p: Number
    p_adjusted: Number
    n: int
    outcome: Outcome
    note: str = ""


def compare(window: TrafficLine, baseline: Baseline, spec: WatchSpec) -> tuple[Check, ...]:
    """All checks of `spec.checks`, in that order."""
    checks = [MEASURES[name](window, baseline, spec) for name in spec.checks]
    tested = [i for i, check in enumerate(checks) if check.outcome == "ok"]
    adjusted = dict(zip(tested, holm([checks[i].p for i in tested]), strict=True))
    return tuple(_decided(check, adjusted[i], spec.alpha) if i in adjusted else check for i, check in enumerate(checks))


def _decided(check: Check, p_adjusted: float, alpha: float) -> Check:
    drift = check.value > check.threshold and p_adjusted <= alpha
    return check.model_copy(update={"p_adjusted": p_adjusted, "outcome": "drift" if drift else "ok"})


def _check(name: CheckName, measure: str, threshold: float, n: int, least: int, **told: Any) -> Check:
    """`ok` until p-values are adjusted; `too few` below `least`."""
    fields: dict[str, Any] = dict.fromkeys(("value", "by_chance", "low", "high", "p", "p_adjusted"), math.nan)
    outcome = "ok" if n >= least else "too few"
    if outcome == "too few":
        told["note"] = f"{n} of at least {least}"
    return Check(name=name, measure=measure, threshold=threshold, n=n, outcome=outcome, **(fields | told))


def _not_compared(name: CheckName, measure: str, threshold: float, why: str) -> Check:
    return _check(name, measure, threshold, 0, 0).model_copy(update={"outcome": "not compared", "note": why})


def _language(window: TrafficLine, baseline: Baseline, spec: WatchSpec) -> Check:
    """Of prompts whose language was identified. Languages rare in the reference count as one."""
    measure = "population stability index"
    live, reference = language_bins(window.languages, baseline.languages)
    if not reference.sum():
        return _not_compared("language", measure, spec.language_psi, "no language identified in the reference")
    if live.sum() < spec.min_requests:
        return _check("language", measure, spec.language_psi, int(live.sum()), spec.min_requests)
    found = compared(stability_index, live, reference, spec.replicates, 1, subtract=True)
    return _check(
        "language", measure, spec.language_psi, found.n, spec.min_requests, value=found.value, by_chance=found.by_chance, p=found.p
    )  # fmt: skip


def language_bins(live: Mapping[str, int], reference: Mapping[str, int]) -> tuple[Numbers, Numbers]:
    """Counts of both, a bin for each language that is common in the reference, the last for all others."""
    common = common_languages(reference)

    def counts(told: Mapping[str, int]) -> Numbers:
        rest = sum(n for code, n in told.items() if code not in common and code != UNKNOWN)
        return np.array([*(told.get(code, 0) for code in common), rest], np.float64)

    return counts(live), counts(reference)


def common_languages(reference: Mapping[str, int]) -> list[str]:
    known = {code: n for code, n in reference.items() if code != UNKNOWN}
    return sorted(code for code, n in known.items() if n >= RARE * sum(known.values()))


def _length(name: CheckName) -> Callable[[TrafficLine, Baseline, WatchSpec], Check]:
    def check(window: TrafficLine, baseline: Baseline, spec: WatchSpec) -> Check:
        measure = "Kolmogorov-Smirnov"
        live = np.array(getattr(window, name), np.float64)
        reference = np.array(getattr(baseline, name), np.float64)
        if not reference.sum():
            why = (
                "clients choose how long answers are: only against traffic"
                if name == "answer_tokens"
                else "no reference"
            )
            return _not_compared(name, measure, spec.length_ks, why)
        if live.sum() < spec.min_requests:
            return _check(name, measure, spec.length_ks, int(live.sum()), spec.min_requests)
        found = compared(largest_gap, live, reference, spec.replicates, 2, subtract=False)
        return _check(
            name, measure, spec.length_ks, found.n, spec.min_requests, value=found.value, by_chance=found.by_chance, p=found.p
        )  # fmt: skip

    return check


def _tokens(window: TrafficLine, baseline: Baseline, spec: WatchSpec) -> Check:
    """Units are texts cut to lengths of the window's prompts, or lines of earlier traffic: tokens of one text go together."""
    measure, threshold = "Jensen-Shannon distance", spec.tokens_js
    num_prompts = sum(window.prompt_tokens)
    live = without(np.array(window.token_buckets, np.float64), baseline.special_buckets)
    if num_prompts < spec.min_requests or not live.sum():
        return _check("tokens", measure, threshold, num_prompts, max(spec.min_requests, num_prompts + 1))
    units, num_units = baseline.token_units(window)
    if len(units) < 2:
        return _not_compared("tokens", measure, threshold, "no reference")
    found = compared_clusters(live, without(units, baseline.special_buckets), num_units, CLUSTER_REPLICATES, 3)
    return _check(
        "tokens", measure, threshold, num_prompts, spec.min_requests, value=found.value, by_chance=found.by_chance, p=found.p
    )  # fmt: skip


def without(counts: Numbers, buckets: Sequence[int]) -> Numbers:
    """Counts with nothing in these buckets (last axis)."""
    kept = counts.copy()
    kept[..., list(buckets)] = 0.0
    return kept


def _perplexity(window: TrafficLine, baseline: Baseline, spec: WatchSpec) -> Check:
    measure, n = "perplexity ratio", sum(window.prompt_nats_per_token)
    if not baseline.nats:
        return _not_compared("perplexity", measure, spec.perplexity_ratio, "the snapshot scored no held-out document")
    if n == 0:
        return _not_compared("perplexity", measure, spec.perplexity_ratio, "the server scores no prompts")
    if n < spec.min_requests or not window.prompt_scored_tokens:
        return _check("perplexity", measure, spec.perplexity_ratio, n, spec.min_requests)
    ratio = perplexity_ratio(window, baseline.nats)
    return _check(
        "perplexity", measure, spec.perplexity_ratio, n, spec.min_requests, value=ratio.value, by_chance=1.0,
        low=ratio.low, high=ratio.high, p=ratio.p,
    )  # fmt: skip


def _errors(window: TrafficLine, baseline: Baseline, spec: WatchSpec) -> Check:
    return _share("errors", "share of requests", window.errors, window.requests, spec.error_rate, spec, math.nan)


def _cut(window: TrafficLine, baseline: Baseline, spec: WatchSpec) -> Check:
    """Clients choose the limit, so that a reference at which nearly all answers are cut leaves nothing to watch."""
    measure, answered = "share of answers", sum(baseline.finish.values())
    if not answered:
        return _not_compared("cut", measure, spec.cut_increase, "no answers in the reference")
    usual = baseline.finish.get("length", 0) / answered
    if usual + spec.cut_increase >= 1:
        return _not_compared("cut", measure, 1.0, f"{usual:.0%} of the reference's answers are cut too")
    cut, n = window.finish.get("length", 0), sum(window.finish.values())
    return _share("cut", measure, cut, n, usual + spec.cut_increase, spec, usual)


def _share(
    name: CheckName, measure: str, hits: int, n: int, threshold: float, spec: WatchSpec, by_chance: float
) -> Check:
    """One-sided exact binomial test that the share is at most `threshold` (Clopper and Pearson 1934); Wilson's interval."""
    if n < spec.min_requests:
        return _check(name, measure, threshold, n, spec.min_requests)
    low, high = wilson_interval(hits, n)
    return _check(
        name, measure, threshold, n, spec.min_requests, value=hits / n, by_chance=by_chance, low=low, high=high,
        p=binomial_tail(hits, n, threshold),
    )  # fmt: skip


def binomial_tail(hits: int, n: int, share: float) -> float:
    """P(at least `hits` of `n`) where each has chance `share`: the regularised incomplete beta function."""
    from scipy.special import betainc

    if hits == 0:
        return 1.0
    return float(betainc(hits, n - hits + 1, share))


def _repetition(window: TrafficLine, baseline: Baseline, spec: WatchSpec) -> Check:
    """Mean over answers against mean over the reference's answers plus what is allowed, by a normal law of the difference.

    Greedy answers, those of the snapshot, repeat themselves more than drawn ones: the check errs towards silence.
    """
    measure = "mean share of repeated 4-grams"
    live, usual = np.array(window.repetition_shares, np.float64), np.array(baseline.repetition_shares, np.float64)
    n, m = int(live.sum()), int(usual.sum())
    if m < 2:
        return _not_compared("repetition", measure, spec.repetition_increase, "no answers in the reference")
    before = baseline.repetition / m
    threshold = before + spec.repetition_increase
    if n < spec.min_requests:
        return _check("repetition", measure, threshold, n, spec.min_requests)
    value = window.repetition / n
    error = math.sqrt((_spread(live, value) + 1 / 1600) / n + (_spread(usual, before) + 1 / 1600) / m)
    return _check(
        "repetition", measure, threshold, n, spec.min_requests, value=value, by_chance=before,
        low=value - 1.96 * error, high=value + 1.96 * error, p=normal_tail((value - threshold) / error),
    )  # fmt: skip


def _spread(counts: NDArray[np.float64], mean: float) -> float:
    """Variance of shares counted by twentieths; callers add that of a bin's half width."""
    middles = np.minimum(np.arange(len(counts)) / 20 + 1 / 40, 1.0)
    return float((counts * (middles - mean) ** 2).sum() / counts.sum())


def normal_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


MEASURES: dict[CheckName, Callable[[TrafficLine, Baseline, WatchSpec], Check]] = {
    "language": _language,
    "prompt_bytes": _length("prompt_bytes"),
    "prompt_tokens": _length("prompt_tokens"),
    "tokens": _tokens,
    "perplexity": _perplexity,
    "errors": _errors,
    "cut": _cut,
    "repetition": _repetition,
    "answer_tokens": _length("answer_tokens"),
}
