"""Corpus snapshot -> a Hugging Face folder. Deployment `train-model`, pool `gpu`."""

from __future__ import annotations

from prefect import flow

from flows.night import FlowReport, open_night
from flows.specs import NightlySpec
from spark_jobs.manifests import Corpus, TokenizerFiles
from tasks.model_steps import export_model, train_checkpoint


@flow(name="train-model")
def train_model(spec: NightlySpec, night: str = "") -> FlowReport:
    """Train from scratch, or on from the champion, and export.

    Args:
        spec: What to do; this flow reads `train`.
        night: Logical night as YYYY-MM-DD, whose corpus is there already. Empty: tonight (UTC).
    """
    with open_night(spec, night) as tonight:
        corpus = tonight.find("corpus", Corpus, "prepare-corpus")
        tokenizer = tonight.find("tokenizer", TokenizerFiles, "prepare-corpus")
        checkpoint = train_checkpoint(corpus, tokenizer, tonight.trained_champion(), spec.train)
        export_model(checkpoint, tokenizer)
        return tonight.report()
