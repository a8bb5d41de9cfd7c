"""The gate as a job: evidence from published outputs, the decision and all of its tests into `data/verdict.json`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from spark_jobs.requests import Outcome, Request
from training.evaluate.evidence import Evidence, benchmarks_of, evidence_of
from training.evaluate.gate import decide
from training.gate_spec import GateSpec
from training.inputs import input_uri
from training.manifests import BenchmarkScorecard, Measurement, ModelFolder, Scorecard


def run(request: Request) -> Outcome:
    """Inputs: candidate and, except on the first night, champion (scorecards on the same corpus). Of each, where there are
    some: `<side>_benchmarks` (a scorecard of benchmarks), `<side>_model`, `<side>_speed` (a measurement)."""
    spec = GateSpec.model_validate(request.spec)
    candidate = Scorecard.load(input_uri(request, "candidate"))
    champion = Scorecard.load(request.inputs["champion"]) if request.inputs.get("champion") else None
    decision = decide(
        _evidence(request, "candidate", candidate),
        _evidence(request, "champion", champion) if champion is not None else None,
        spec,
    )
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
    told = fields | {"tests": [row.model_dump(mode="json") for row in decision.tests]}
    (data / "verdict.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return Outcome(num_rows=1, format="json", fields=fields)


def _evidence(request: Request, side: str, scorecard: Scorecard) -> Evidence:
    found, uris = evidence_of(scorecard), request.inputs
    if uris.get(f"{side}_benchmarks"):
        items = Path(BenchmarkScorecard.load(uris[f"{side}_benchmarks"]).folder()) / "items.parquet"
        found = replace(found, benchmarks=benchmarks_of(items))
    if uris.get(f"{side}_model"):
        found = replace(found, weight_bytes=ModelFolder.load(uris[f"{side}_model"]).weight_bytes)
    if uris.get(f"{side}_speed"):
        found = replace(found, seconds_per_token=1 / Measurement.load(uris[f"{side}_speed"]).decode_tokens_per_s)
    return found
