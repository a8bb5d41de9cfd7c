"""Tonight's models and the champion on held-out documents, and the verdict. Deployment `evaluate-model`, pool `gpu`."""

from __future__ import annotations

from prefect import flow

from flows.night import FlowReport, open_night
from flows.specs import NightlySpec
from spark_jobs.manifests import Corpus, TokenizerFiles
from tasks.model_steps import decide, score_model
from training.manifests import ModelFolder


@flow(name="evaluate-model")
def evaluate_model(spec: NightlySpec, night: str = "") -> FlowReport:
    """Score dense, compressed and champion, then decide whether the candidate may replace the champion.

    Args:
        spec: What to do; this flow reads `evaluate`, `compress.schemes` and `gate`.
        night: Logical night as YYYY-MM-DD, whose models are there already. Empty: tonight (UTC).
    """
    with open_night(spec, night) as tonight:
        corpus = tonight.find("corpus", Corpus, "prepare-corpus")
        tokenizer = tonight.find("tokenizer", TokenizerFiles, "prepare-corpus")
        models = {"dense": tonight.find("export", ModelFolder, "train-model")} | {
            scheme: tonight.find(f"compress-{scheme}", ModelFolder, "compress-model")
            for scheme in spec.compress.schemes
        }
        scores = {label: score_model(label, model, corpus, tokenizer, spec.evaluate) for label, model in models.items()}
        champion = tonight.champion_to_beat(models[spec.gate.candidate])
        beaten = score_model("champion", champion, corpus, tokenizer, spec.evaluate) if champion else None
        decide(scores[spec.gate.candidate], beaten, spec.gate)
        return tonight.report()
