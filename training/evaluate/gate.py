"""The gate: is the candidate good enough to replace the champion? A pure decision, and the job around it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from spark_jobs.requests import Outcome, Request
from training.gate_spec import GateSpec
from training.inputs import input_uri
from training.manifests import Scorecard


@dataclass(frozen=True)
class Evidence:
    """Scores of one model by document id: (nats, bytes)."""

    bits_per_byte: float
    documents: Mapping[str, tuple[float, int]]


@dataclass(frozen=True)
class Decision:
    """difference: candidate minus champion in bits per byte, below 0 is better; upper_bound: of its interval."""

    decision: Literal["promote", "keep"]
    reason: str
    difference: float | None = None
    upper_bound: float | None = None
    num_documents: int = 0


def run(request: Request) -> Outcome:
    """Inputs: candidate and, except on the first night, champion (scorecards on the same corpus)."""
    spec = GateSpec.model_validate(request.spec)
    candidate = Scorecard.load(input_uri(request, "candidate"))
    champion = Scorecard.load(request.inputs["champion"]) if request.inputs.get("champion") else None
    decision = decide(evidence_of(candidate), evidence_of(champion) if champion else None, spec)
    fields = {
        "decision": decision.decision,
        "reason": decision.reason,
        "candidate": candidate.model,
        "champion": champion.model if champion else "",
        "difference": decision.difference,
        "upper_bound": decision.upper_bound,
        "num_documents": decision.num_documents,
    }
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "verdict.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    return Outcome(num_rows=1, format="json", fields=fields)


def evidence_of(scorecard: Scorecard) -> Evidence:
    table = pq.read_table(Path(scorecard.folder()) / "documents.parquet", use_threads=False).to_pydict()
    scores = zip(table["nats"], table["num_bytes"], strict=True)
    return Evidence(scorecard.bits_per_byte, dict(zip(table["doc_id"], scores, strict=True)))


def decide(candidate: Evidence, champion: Evidence | None, spec: GateSpec) -> Decision:
    """Promote only on evidence: too few documents, a tie, or an interval that reaches past the margin keep the champion."""
    if champion is None:
        return _first(candidate, spec)
    shared = sorted(candidate.documents.keys() & champion.documents.keys())
    if len(shared) < spec.min_documents:
        return Decision(
            "keep",
            f"only {len(shared)} documents were scored by both models, the gate wants {spec.min_documents}: champion stays",
            num_documents=len(shared),
        )
    ours = np.array([candidate.documents[i] for i in shared])
    theirs = np.array([champion.documents[i] for i in shared])
    difference = _bits_per_byte(ours.sum(axis=0)) - _bits_per_byte(theirs.sum(axis=0))
    upper = upper_bound(ours, theirs, spec)
    numbers = {"difference": float(difference), "upper_bound": upper, "num_documents": len(shared)}
    told = (
        f"candidate {_bits_per_byte(ours.sum(axis=0)):.4f} against champion {_bits_per_byte(theirs.sum(axis=0)):.4f} bits "
        f"per byte on {len(shared)} documents: difference {difference:+.4f}, at most {upper:+.4f} with {spec.confidence:.0%} "
        f"confidence, {spec.margin:+.4f} allowed"
    )
    if (ours == theirs).all():
        return Decision("keep", f"the two models score every document alike, a tie: champion stays ({told})", **numbers)  # type: ignore[arg-type]
    if upper < spec.margin:
        return Decision("promote", told, **numbers)  # type: ignore[arg-type]
    return Decision("keep", f"{told}: champion stays", **numbers)  # type: ignore[arg-type]


def _first(candidate: Evidence, spec: GateSpec) -> Decision:
    n, value = len(candidate.documents), candidate.bits_per_byte
    if spec.first_run == "hold":
        return Decision("keep", "no champion yet and gate.first_run is hold: nothing is promoted", num_documents=n)
    if not value < spec.max_first_bits_per_byte:
        reason = f"no champion yet, and {value:.4f} bits per byte is not below {spec.max_first_bits_per_byte:g}"
        return Decision("keep", f"{reason}: nothing is promoted", num_documents=n)
    reason = f"first champion: {value:.4f} bits per byte on {n} documents, below {spec.max_first_bits_per_byte:g}"
    return Decision("promote", reason, num_documents=n)


def upper_bound(ours: np.ndarray, theirs: np.ndarray, spec: GateSpec) -> float:
    """One-sided upper bound of (ours - theirs) in bits per byte, by paired bootstrap over documents.

    ours, theirs: float64 (n, 2), nats and bytes of the same documents. Each replicate draws documents once, for both
    models, and computes bits per byte from the sums: an average of per-document ratios would be another quantity.
    """
    rng = np.random.default_rng(spec.seed)
    n = len(ours)
    weights_RN = rng.multinomial(n, np.full(n, 1 / n), size=spec.replicates).astype(np.float64)
    differences_R = _bits_per_byte((weights_RN @ ours).T) - _bits_per_byte((weights_RN @ theirs).T)
    return float(np.quantile(differences_R, spec.confidence, method="higher"))


def _bits_per_byte(nats_and_bytes: np.ndarray) -> np.ndarray:
    nats, size = nats_and_bytes
    result: np.ndarray = nats / (size * math.log(2))
    return result
