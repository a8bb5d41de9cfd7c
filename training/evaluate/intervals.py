"""What a model scores on held-out documents, with intervals: one resampling of documents behind all of them.

Documents, not tokens, are drawn: tokens of a document are alike, and an interval that takes each for a witness of its own is
too narrow. A slice is resampled with the whole, so how many of its documents are drawn varies as it would in another draw.

Shapes: N documents, T tokens of all of them, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from training.evaluate.perplexity import TokenScores
from training.metrics.bootstrap import Bootstrap, Resampled, resample_sums
from training.metrics.ratio import ratio
from training.metrics.score import Score
from training.specs import EvaluateSpec

MOST_SLICES = 50  # that are told, the largest
LN2 = math.log(2)
Sums = Mapping[str, np.ndarray]  # name of a column -> its sum over documents, of all of them or of each replicate


class Columns:
    """Statistics of documents by name, resampled together."""

    def __init__(self, columns: Mapping[str, np.ndarray], bootstrap: Bootstrap, num_invalid: int) -> None:
        self._names = list(columns)
        self._num_invalid = num_invalid
        n = len(next(iter(columns.values())))
        stats = np.stack([columns[name] for name in self._names], axis=-1)
        drawn = resample_sums(stats, bootstrap)
        self._drawn = Resampled(drawn.whole, drawn.replicates, n + num_invalid, num_invalid, bootstrap)

    def score(self, name: str, metric: Callable[[Sums], np.ndarray], definition: str) -> Score:
        """With documents that have no finite score, none that is of them all has a value either: see `Score`."""
        found = self._drawn.score(name, lambda sums: metric(self._named(sums)), definition)
        if self._num_invalid:
            return found.model_copy(update={"value": math.nan, "low": math.nan, "high": math.nan})
        return found

    def of_slice(self, name: str, n: int) -> Score:
        """Bits per byte of the n documents of a slice that have a score."""

        def metric(sums: np.ndarray) -> np.ndarray:
            return _bits(self._named(sums), f"{name} nats", f"{name} num_bytes")

        found = self._drawn.score("bits_per_byte", metric, f"unit:document|slice:{name}")
        return found.model_copy(update={"n": n, "n_invalid": 0})

    def _named(self, sums: np.ndarray) -> Sums:
        return {name: sums[..., place] for place, name in enumerate(self._names)}


def scored(
    documents: Mapping[str, Sequence[float]], tokens: Sequence[TokenScores], slices: Mapping[str, Sequence[int]],
    num_invalid: int, spec: EvaluateSpec,
) -> dict[str, Any]:  # fmt: skip
    """documents: nats, num_bytes, num_tokens and, of disturbed texts, noisy_nats and noisy_bytes, a value each document.
    slices: places of the documents of each.

    Returns, JSON-able: scores, a list; slices, a score each; reliability, the bins of confidence."""
    columns = {name: np.asarray(values, np.float64) for name, values in documents.items()}
    largest = sorted(slices, key=lambda name: (-len(slices[name]), name))[:MOST_SLICES]
    inside = {name: np.bincount(np.asarray(slices[name]), minlength=len(tokens)) for name in largest}
    for name, mask in inside.items():
        columns |= {f"{name} {part}": columns[part] * mask for part in ("nats", "num_bytes")}
    reliability: list[dict[str, float]] = []
    if sum(len(one.right) for one in tokens):
        found, reliability = confidence_columns(tokens, spec.calibration_bins)
        columns |= found
    resampled = Columns(columns, Bootstrap(replicates=spec.replicates, seed=spec.seed), num_invalid)
    told = {name: resampled.of_slice(name, len(slices[name])) for name in sorted(largest)}
    return {
        "scores": [score.model_dump(mode="json") for score in _scores(resampled, columns, spec)],
        "slices": {name: score.model_dump(mode="json") for name, score in told.items()},
        "reliability": reliability,
    }


def _scores(resampled: Columns, columns: Mapping[str, np.ndarray], spec: EvaluateSpec) -> list[Score]:
    unit, bins = "unit:document", spec.calibration_bins
    found = [
        resampled.score("bits_per_byte", lambda s: _bits(s, "nats", "num_bytes"), unit),
        resampled.score(
            "perplexity", lambda s: np.exp(ratio(s["nats"], s["num_tokens"])), f"{unit}|weight:token"
        ),
    ]  # fmt: skip
    if "noisy_nats" in columns:
        how = f"{unit}|characters:{spec.noise_share:g}|seed:{spec.seed}"
        noisy = "noisy_nats", "noisy_bytes"
        found.append(resampled.score("noisy_bits_per_byte", lambda s: _bits(s, *noisy), how))
        found.append(
            resampled.score("noise_loss", lambda s: _bits(s, *noisy) - _bits(s, "nats", "num_bytes"), how)
        )  # fmt: skip
    if "right" in columns:
        found += [
            resampled.score("token_accuracy", lambda s: ratio(s["right"], s["scored"]), unit),
            resampled.score("ece", lambda s: _gaps(s, "equal", bins), f"{unit}|bins:{bins}|edges:open-closed|confidence:highest"),
            resampled.score("adaptive_ece", lambda s: _gaps(s, "mass", bins), f"{unit}|bins:{bins}|mass:equal|confidence:highest"),
            resampled.score("brier", lambda s: ratio(s["square"], s["scored"]), f"{unit}|classes:sum"),
        ]  # fmt: skip
    return found


def _bits(sums: Sums, nats: str, num_bytes: str) -> np.ndarray:
    return ratio(sums[nats], sums[num_bytes]) / LN2


def _gaps(sums: Sums, kind: str, bins: int) -> np.ndarray:
    """Mean over tokens of the distance between accuracy and confidence in their bin."""
    total = sum(abs(sums[f"{kind} {b}"]) for b in range(bins))
    return ratio(np.asarray(total), sums["scored"])


def confidence_columns(
    tokens: Sequence[TokenScores], bins: int
) -> tuple[dict[str, np.ndarray], list[dict[str, float]]]:
    """By document: tokens scored and right, squares, and of each bin how much oftener right than confident. And the bins of
    equal width, as a diagram of reliability shows them.

    Bin b of B is (b/B, (b+1)/B], 0 in the first; of equal mass: borders are confidences such that as many tokens lie between
    any two, equal ones in one bin.
    """
    lengths = [len(one.right) for one in tokens]
    document = np.repeat(np.arange(len(tokens)), lengths)
    confidence = np.concatenate([one.confidence for one in tokens]).astype(np.float64)
    right = np.concatenate([one.right for one in tokens]).astype(np.float64)
    square = np.concatenate([one.square for one in tokens]).astype(np.float64)
    by_document = {"scored": np.ones_like(right), "right": right, "square": square}
    columns = {name: np.bincount(document, values, len(tokens)) for name, values in by_document.items()}
    edges = np.arange(1, bins) / bins
    borders = {"equal": edges, "mass": np.quantile(confidence, edges, method="inverted_cdf")}
    for kind, inner in borders.items():
        place = np.searchsorted(inner, confidence, side="left")
        gaps = np.bincount(document * bins + place, right - confidence, len(tokens) * bins).reshape(-1, bins)
        columns |= {f"{kind} {b}": gaps[:, b] for b in range(bins)}
    place = np.searchsorted(edges, confidence, side="left")
    count = np.bincount(place, minlength=bins)
    means = {
        name: ratio(np.bincount(place, v, bins), count) for name, v in (("confidence", confidence), ("accuracy", right))
    }
    return columns, [
        {"low": b / bins, "high": (b + 1) / bins, "n": int(count[b])} | {name: float(v[b]) for name, v in means.items()}
        for b in range(bins)
        if count[b]
    ]
