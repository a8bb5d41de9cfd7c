"""Dense model -> candidates, each reloaded, scored and measured, and the best within the budget. Deployment `compress-model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from pydantic import Field

from flows.night import FlowReport, Night, open_night
from flows.specs import NightlySpec
from spark_jobs.manifests import Corpus, TokenizerFiles
from tasks.artifacts import publish_markdown
from tasks.compress_steps import Material, calibrate, choose, follow, measure
from tasks.engine import is_planned
from tasks.model_steps import score_model
from training.manifests import CompressionChoice, ModelFolder


class CompressReport(FlowReport):
    """What `nightmill compress --json` prints as its last line."""

    status: Literal["done", "failed"] = "done"
    seconds: float = 0.0
    best: str = Field("", description="Name of the candidate that the budget chose; dense: none was good enough.")
    decision: str = ""
    candidates: tuple[dict[str, Any], ...] = Field((), description="Bytes, bits, speed and quality of each.")
    choice: str = Field("", description="Folder with candidates.json, candidates.md and pareto.svg.")


@flow(name="compress-model")
def compress_model(spec: NightlySpec, night: str = "") -> CompressReport:
    """Make every candidate of tonight's model, score and measure it beside the dense one, choose within the budget.

    A step that is finished is never run again; a killed run, started again, goes on where it stopped.

    Args:
        spec: What to do; this flow reads `compress`, `evaluate` for how candidates are scored, and `train` for recovery.
        night: Logical night as YYYY-MM-DD, whose model is exported already. Empty: tonight (UTC).
    """
    with open_night(spec, night) as tonight:
        choice = choose_candidate(tonight) if spec.compress.recipes else None
        told: dict[str, Any] = {}
        if choice is not None and not is_planned(choice):
            folder = Path(choice.folder())
            found = json.loads((folder / "candidates.json").read_text())["candidates"]
            told = {"best": choice.best, "decision": choice.reason, "candidates": found, "choice": str(folder)}
            publish_markdown("candidates", (folder / "candidates.md").read_text(), choice.reason)
        return CompressReport(**tonight.report().model_dump() | told)


def choose_candidate(tonight: Night) -> CompressionChoice:
    """All candidates, one after the other; what is finished is not done again."""
    spec = tonight.spec
    corpus = tonight.find("corpus", Corpus, "prepare-corpus")
    tokenizer = tonight.find("tokenizer", TokenizerFiles, "prepare-corpus")
    models = {"dense": tonight.find("export", ModelFolder, "train-model")}
    recipes = spec.compress.recipes
    texts = (
        calibrate(corpus, tokenizer, spec.compress.calibration) if any(r.wants_calibration for r in recipes) else None
    )
    material = Material(models["dense"], corpus, tokenizer, spec.train)
    models |= {r.name: follow(r, material, texts if r.wants_calibration else None) for r in recipes}
    scores = {name: score_model(name, model, corpus, tokenizer, spec.evaluate) for name, model in models.items()}
    measured = {name: measure(name, model, spec.compress.measure) for name, model in models.items()}
    return choose(models, scores, measured, spec.compress.budget)
