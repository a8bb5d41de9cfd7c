"""The choice among candidates: the smallest, or the fastest, of those whose loss in quality stays within the budget.

Inputs of the job: model.<name>, score.<name>, measurement.<name> of every candidate and of `dense`. Quality is bits per byte on
the same held-out documents; a candidate's loss is its bits per byte minus the dense model's, and what counts is the upper
bound of its interval, as at the gate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spark_jobs.requests import Outcome, Request
from training.compress.pareto import front, picture
from training.compress_spec import BudgetSpec
from training.evaluate.evidence import Evidence, evidence_of
from training.evaluate.paired_bounds import compare
from training.gate_spec import GateSpec
from training.inputs import input_uri
from training.manifests import Measurement, ModelFolder, Scorecard

DENSE = "dense"
TWO_SIDED = 0.95


@dataclass(frozen=True)
class Candidate:
    """loss, loss_upper, bits_per_byte with low and high: bits per byte. low, high: 95 % interval by resampled documents.
    weight_bytes: on disk. peak_bytes: of the process that wrote. Speeds are medians, tokens a second."""

    name: str
    weight_bytes: int
    peak_bytes: int
    effective_bits: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    joules_per_token: float | None
    bits_per_byte: float
    low: float
    high: float
    loss: float
    loss_upper: float

    def cost(self, minimize: str) -> float:
        """What the budget makes small: bytes, or seconds of a written token."""
        return float(self.weight_bytes) if minimize == "bytes" else 1 / self.decode_tokens_per_s


def run(request: Request) -> Outcome:
    """Raises: RequestError if one of a candidate's inputs is missing."""
    spec = BudgetSpec.model_validate(request.spec)
    names = [role.removeprefix("model.") for role in request.inputs if role.startswith("model.")]
    dense = evidence_of(Scorecard.load(input_uri(request, f"score.{DENSE}")))
    candidates = [_candidate(request, name, dense, spec) for name in sorted(names)]
    best, reason = choose(candidates, spec)
    efficient = front([(c.cost(spec.minimize), c.bits_per_byte) for c in candidates])
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    rows = [
        _finite(asdict(c)) | {"within_budget": within(c, spec), "pareto": on}
        for c, on in zip(candidates, efficient, strict=True)
    ]
    facts = {"best": best, "reason": reason, "budget": spec.model_dump(), "candidates": rows}
    (data / "candidates.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    (data / "candidates.md").write_text(table(candidates, best, spec))
    (data / "pareto.svg").write_text(
        picture(candidates, best, frozenset(c.name for c in candidates if within(c, spec)), spec)
    )
    fields = {"best": best, "reason": reason, "minimize": spec.minimize, "max_loss": spec.max_loss}
    return Outcome(num_rows=len(candidates), format="json", fields=fields)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null says that nothing is known."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _candidate(request: Request, name: str, dense: Evidence, spec: BudgetSpec) -> Candidate:
    model = ModelFolder.load(input_uri(request, f"model.{name}"))
    score = Scorecard.load(input_uri(request, f"score.{name}"))
    measured = Measurement.load(input_uri(request, f"measurement.{name}"))
    evidence = evidence_of(score)
    shared = sorted(evidence.documents.keys() & dense.documents.keys())
    ours = np.array([evidence.documents[i] for i in shared], np.float64).reshape(-1, 2)
    theirs = np.array([dense.documents[i] for i in shared], np.float64).reshape(-1, 2)
    loss, bound = 0.0, 0.0
    if name != DENSE:
        loss, bound = loss_of(ours, theirs, spec)
        if len(shared) < len(dense.documents):  # what it could not score may be as bad as anything
            bound = float("inf")
    low, high = interval(ours, spec)
    return Candidate(
        name=name, weight_bytes=model.weight_bytes, peak_bytes=measured.peak_bytes, effective_bits=model.effective_bits,
        prefill_tokens_per_s=measured.prefill_tokens_per_s, decode_tokens_per_s=measured.decode_tokens_per_s,
        joules_per_token=measured.joules_per_token, bits_per_byte=score.bits_per_byte, low=low, high=high, loss=loss,
        loss_upper=bound,
    )  # fmt: skip


def loss_of(ours: np.ndarray, theirs: np.ndarray, spec: BudgetSpec) -> tuple[float, float]:
    """Loss in bits per byte and the upper bound of its interval; both (n, 2) float64, nats and bytes of the same documents.
    No shared document: nothing is known, so the bound is infinite."""
    if not len(ours):
        return float("inf"), float("inf")
    loss = float(_bits(ours.sum(axis=0)) - _bits(theirs.sum(axis=0)))
    drawn = GateSpec(confidence=spec.confidence, replicates=spec.replicates, seed=spec.seed)
    bits = np.array([1 / np.log(2), 1.0])
    return loss, compare(ours * bits, theirs * bits, drawn).upper(spec.confidence)


def interval(scores: np.ndarray, spec: BudgetSpec) -> tuple[float, float]:
    """95 % percentile interval of bits per byte; (n, 2) float64, nats and bytes a document."""
    if not len(scores):
        return float("inf"), float("inf")
    n = len(scores)
    weights_RN = np.random.default_rng(spec.seed).multinomial(n, np.full(n, 1 / n), size=spec.replicates)
    values_R = _bits((weights_RN.astype(np.float64) @ scores).T)
    low, high = np.quantile(values_R, [(1 - TWO_SIDED) / 2, (1 + TWO_SIDED) / 2])
    return float(low), float(high)


def _bits(nats_and_bytes: np.ndarray) -> np.ndarray:
    found: np.ndarray = nats_and_bytes[0] / (nats_and_bytes[1] * np.log(2))
    return found


def within(candidate: Candidate, spec: BudgetSpec) -> bool:
    """A bound that is not a number is not within."""
    return candidate.name == DENSE or candidate.loss_upper <= spec.max_loss


def choose(candidates: Sequence[Candidate], spec: BudgetSpec) -> tuple[str, str]:
    """Name of the best candidate and why. The dense model is one: where all others lose too much, or cost more, it is the best.
    Of equals the one that loses less, then by name."""
    good = [c for c in candidates if within(c, spec)]
    best = min(good, key=lambda c: (c.cost(spec.minimize), c.bits_per_byte, c.name))
    lost = len(candidates) - len(good)
    if best.name == DENSE:
        return (
            DENSE,
            f"{lost} of {len(candidates) - 1} candidates may lose more than {spec.max_loss:g} bits per byte, none of the others costs less",
        )
    dense = next(c for c in candidates if c.name == DENSE)
    saved = f"{best.weight_bytes / dense.weight_bytes:.1%} of the dense bytes"
    if spec.minimize == "latency":
        saved = f"{best.decode_tokens_per_s / dense.decode_tokens_per_s:.2f} times the dense speed of writing"
    return best.name, (
        f"{best.name}: {saved}, loses {best.loss:+.4f} bits per byte, at most {best.loss_upper:+.4f} with {spec.confidence:.0%} "
        f"confidence, {spec.max_loss:g} allowed"
    )


def table(candidates: Sequence[Candidate], best: str, spec: BudgetSpec) -> str:
    """Markdown, by bytes on disk."""
    lines = [
        "| model | bytes | of dense | bits a weight | peak memory, MB | prefill, tokens/s | decode, tokens/s | J/token | bits per byte | loss, at most | within |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    dense = next(c for c in candidates if c.name == DENSE)
    for c in sorted(candidates, key=lambda c: (c.weight_bytes, c.name)):
        name = f"**{c.name}**" if c.name == best else c.name
        energy = "not told" if c.joules_per_token is None else f"{c.joules_per_token:.3g}"
        lines.append(
            f"| {name} | {c.weight_bytes:,} | {c.weight_bytes / dense.weight_bytes:.1%} | {c.effective_bits:.3f} | {c.peak_bytes / 1e6:.0f} | "
            f"{c.prefill_tokens_per_s:,.0f} | {c.decode_tokens_per_s:,.1f} | {energy} | {c.bits_per_byte:.4f} [{c.low:.4f}, {c.high:.4f}] | "
            f"{c.loss:+.4f}, {c.loss_upper:+.4f} | {'yes' if within(c, spec) else 'no'} |"
        )
    return "\n".join(lines) + "\n"
