"""The model steps of a night: each function names its step, its inputs and the code behind it, and runs it."""

from __future__ import annotations

from collections.abc import Mapping

from spark_jobs.manifests import Corpus, Handle, TokenizerFiles
from tasks.engine import current_engine
from tasks.steps import Step
from training.gate_spec import EvaluationReportSpec, GateSpec
from training.manifests import Checkpoint, EvaluationReport, ModelFolder, Scorecard, Verdict
from training.specs import EvaluateSpec, ExportSpec, TrainSpec

TORCH = ("torch", "transformers", "numpy", "safetensors")


def train_checkpoint(
    corpus: Corpus, tokenizer: TokenizerFiles, champion: ModelFolder | None, spec: TrainSpec,
    teacher: ModelFolder | None = None,
) -> Checkpoint:  # fmt: skip
    """Corpus -> checkpoint: from scratch, or on from the champion with replay of earlier nights. teacher: where spec.distill
    says that a model teaches."""
    engine = current_engine()
    inputs: dict[str, Handle] = {"corpus": corpus, "tokenizer": tokenizer}
    if champion is not None:
        inputs["champion"] = champion
    if teacher is not None:
        inputs["teacher"] = teacher
    return engine.run(
        Step(
            name="train", handle=Checkpoint, entry="training.pretrain.main", spec=spec, night=engine.night,
            inputs=inputs, libraries=TORCH, app="torch",
        )
    )  # fmt: skip


def train_on(
    name: str, start: ModelFolder, teacher: ModelFolder, corpus: Corpus, tokenizer: TokenizerFiles, spec: TrainSpec
) -> Checkpoint:
    """Train a model of any shape on, taught by another."""
    engine = current_engine()
    inputs: dict[str, Handle] = {"corpus": corpus, "tokenizer": tokenizer, "start": start, "teacher": teacher}
    return engine.run(
        Step(
            name=name, handle=Checkpoint, entry="training.pretrain.main", spec=spec, night=engine.night, inputs=inputs,
            libraries=TORCH, app="torch", job="train",
        )
    )  # fmt: skip


def export_model(checkpoint: Checkpoint, tokenizer: TokenizerFiles) -> ModelFolder:
    """Checkpoint -> a Hugging Face folder."""
    return export_checkpoint("export", checkpoint, tokenizer)


def export_checkpoint(name: str, checkpoint: Checkpoint, tokenizer: TokenizerFiles) -> ModelFolder:
    engine = current_engine()
    return engine.run(
        Step(
            name=name, handle=ModelFolder, entry="training.export", spec=ExportSpec(), night=engine.night,
            inputs={"checkpoint": checkpoint, "tokenizer": tokenizer}, libraries=TORCH, app="torch", job="export",
        )
    )  # fmt: skip


def score_model(
    label: str, model: ModelFolder, corpus: Corpus, tokenizer: TokenizerFiles, spec: EvaluateSpec
) -> Scorecard:
    """Bits per byte and perplexity on the held-out documents of all nights so far."""
    engine = current_engine()
    return engine.run(
        Step(
            name=f"evaluate-{label}", handle=Scorecard, entry="training.evaluate.job", spec=spec, night=engine.night,
            inputs={"model": model, "corpus": corpus, "tokenizer": tokenizer}, libraries=TORCH, app="torch",
            job="evaluate",
        )
    )  # fmt: skip


def decide(
    candidate: Scorecard, champion: Scorecard | None, spec: GateSpec, beside: Mapping[str, Handle] | None = None
) -> Verdict:
    """Candidate against champion on the same documents -> promote or keep, with the numbers.

    beside: what else is known of them: `candidate_benchmarks`, `champion_benchmarks`, and for guards `<side>_model`, `<side>_speed`.
    """
    engine = current_engine()
    inputs: dict[str, Handle] = {"candidate": candidate}
    if champion is not None:
        inputs |= {"champion": champion} | dict(beside or {})
    return engine.run(
        Step(
            name="gate", handle=Verdict, entry="training.evaluate.gate_job", spec=spec, night=engine.night, dated=True,
            inputs=inputs, libraries=("numpy",), app="torch",
        )
    )  # fmt: skip


def report_evaluation(
    candidate: Scorecard, champion: Scorecard | None, verdict: Verdict, corpus: Corpus, beside: Mapping[str, Handle]
) -> EvaluationReport:
    """A page about the evaluation. beside: `candidate_benchmarks`, `champion_benchmarks`, `choice` (of compression)."""
    engine = current_engine()
    inputs: dict[str, Handle] = {"candidate": candidate, "verdict": verdict, "corpus": corpus} | dict(beside)
    if champion is not None:
        inputs["champion"] = champion
    return engine.run(
        Step(
            name="report-evaluation", handle=EvaluationReport, entry="training.evaluate.report_job",
            spec=EvaluationReportSpec(), night=engine.night, inputs=inputs, libraries=("numpy",), app="torch",
        )
    )  # fmt: skip
