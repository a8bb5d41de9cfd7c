"""Benchmarks and a model -> a scorecard with a row an item. Deployment `evaluate`, pool `gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefect import flow
from pydantic import Field

from flows.engines import engine_open
from flows.evaluate_specs import EvaluateRunSpec
from flows.night import scheduled_night
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Corpus, Frozen, TokenizerFiles
from tasks.benchmark_steps import score_benchmarks, trained_corpus
from tasks.engine import Engine, StepResult, is_planned
from tasks.finetune_steps import import_model
from tasks.ledger import champion_now
from training.benchmarks.results import SCORES, BenchmarkResult, read_results
from training.manifests import ModelFolder


class EvaluateReport(Frozen):
    """What `nightmill evaluate --json` prints as its last line."""

    status: Literal["done", "failed"]
    night: str
    seconds: float = 0.0
    steps: tuple[StepResult, ...] = ()
    model: str = Field("", description="Address of the model folder in the workspace.")
    folder: str = Field("", description="Folder with items.parquet and scores.json.")
    results: dict[str, BenchmarkResult] = Field(default_factory=dict, description="Of each benchmark, by its name.")
    decision: str = ""


@flow(name="evaluate", flow_run_name="{spec.name} {night}")
def evaluate(spec: EvaluateRunSpec, night: str = "") -> EvaluateReport:
    """Ask a model every benchmark; judge the answers; look for the items in the corpus it was trained on.

    A shard that was answered is never asked again; a killed run, started again, goes on where it stopped.

    Args:
        spec: What to do.
        night: Logical night as YYYY-MM-DD, under which the run is kept. Empty: tonight (UTC), or the scheduled start.
    """
    with engine_open(spec, night or scheduled_night()) as engine:
        model, corpus, tokenizer = asked_model(spec, engine)
        card = score_benchmarks("model", model, corpus, tokenizer, spec.benchmarks)
        known = not is_planned(card)
        return EvaluateReport(
            status="done",
            night=engine.night,
            steps=tuple(engine.results),
            model=model.address,
            folder=card.folder() if known else "",
            results=read_results(Path(card.folder()) / SCORES) if known else {},
        )


def asked_model(spec: EvaluateRunSpec, engine: Engine) -> tuple[ModelFolder, Corpus | None, TokenizerFiles | None]:
    """The model, and what it was trained on where that is known. Raises: RequestError if the pipeline has no champion."""
    if spec.model.pipeline != spec.name:
        return import_model(spec.model), None, None
    champion = champion_now(engine.workspace)
    if champion is None:
        raise RequestError(f"model.pipeline {spec.name}: it has no champion yet; run its nightly first")
    model = ModelFolder.load(engine.workspace.at(champion.address))
    corpus = trained_corpus(model)
    return model, corpus, None if corpus is None else TokenizerFiles.load(corpus.at(corpus.tokenizer.address))
