"""The steps of compression: calibration, one chain of steps a recipe, measurements, and the choice among candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spark_jobs.manifests import Corpus, Handle, TokenizerFiles
from tasks.engine import current_engine
from tasks.model_steps import TORCH, export_checkpoint, train_on
from tasks.steps import Step
from training.compress_spec import BudgetSpec, CalibrationSpec, CompressStepSpec, MeasureSpec, RecipeSpec, RecoverSpec
from training.distill_spec import DistillSpec
from training.manifests import Calibration, CompressionChoice, Measurement, ModelFolder, Scorecard
from training.specs import TrainSpec

FILES = ("compressed-tensors", "torchao", "gguf")  # libraries that write, and so decide, a folder's bytes


@dataclass(frozen=True)
class Material:
    """What the chains of all recipes share."""

    dense: ModelFolder
    corpus: Corpus
    tokenizer: TokenizerFiles
    train: TrainSpec


def calibrate(corpus: Corpus, tokenizer: TokenizerFiles, spec: CalibrationSpec) -> Calibration:
    """Sequences of the training corpus that no evaluation document shares."""
    engine = current_engine()
    return engine.run(
        Step(
            name="calibrate", handle=Calibration, entry="training.compress.calibrate", spec=spec, night=engine.night,
            inputs={"corpus": corpus, "tokenizer": tokenizer}, libraries=TORCH, app="torch",
        )
    )  # fmt: skip


def follow(recipe: RecipeSpec, material: Material, calibration: Calibration | None) -> ModelFolder:
    """Dense model -> the recipe's folder, reloaded in a fresh process and compared. Steps in between are its own."""
    if recipe.recover is None:
        return _compress(f"compress-{recipe.name}", recipe, "all", material.dense, material, calibration)
    thin = _compress(f"thin-{recipe.name}", recipe, "thin", material.dense, material, calibration)
    recovered = _recovered(recipe, recipe.recover, thin, material)
    return _compress(f"compress-{recipe.name}", recipe, "finish", recovered, material, calibration)


def _compress(
    step: str, recipe: RecipeSpec, stage: str, model: ModelFolder, material: Material, calibration: Calibration | None
) -> ModelFolder:
    """`dense` is the model that later nights train on from, whatever lies between."""
    engine = current_engine()
    inputs: dict[str, Handle] = {"model": model, "dense": material.dense}
    if calibration is not None:
        inputs["calibration"] = calibration
    spec = CompressStepSpec.model_validate({"recipe": recipe, "stage": stage})
    return engine.run(
        Step(
            name=step, handle=ModelFolder, entry="training.compress.job", spec=spec, night=engine.night, inputs=inputs,
            libraries=(*TORCH, *FILES), app="torch", job="compress",
        )
    )  # fmt: skip


def _recovered(recipe: RecipeSpec, spec: RecoverSpec, thin: ModelFolder, material: Material) -> ModelFolder:
    """The thin model trained on, taught by the dense one, on the same corpus."""
    train = recovery_of(material.train, spec, keep_zeros=recipe.prune is not None)
    checkpoint = train_on(f"recover-{recipe.name}", thin, material.dense, material.corpus, material.tokenizer, train)
    return export_checkpoint(f"export-{recipe.name}", checkpoint, material.tokenizer)


def recovery_of(train: TrainSpec, spec: RecoverSpec, keep_zeros: bool) -> TrainSpec:
    """The night's own training, shorter and slower, with a teacher in place of whatever else taught it."""
    changed = {
        "continue_steps": spec.num_steps,
        "continue_rate_ratio": spec.rate_ratio,
        "distill": DistillSpec(alpha=spec.alpha, temperature=spec.temperature),
        "keep_zeros": keep_zeros,
        "loss": train.loss.model_copy(update={"chunk_tokens": 0}),  # a teacher's part needs all logits of a token
    }
    return TrainSpec.model_validate(train.model_dump() | {name: _dumped(value) for name, value in changed.items()})


def _dumped(value: object) -> object:
    return value.model_dump() if hasattr(value, "model_dump") else value


def measure(label: str, model: ModelFolder, spec: MeasureSpec) -> Measurement:
    """Speed and memory on this machine, tonight: dated, as no other night's figures are this one's."""
    engine = current_engine()
    return engine.run(
        Step(
            name=f"measure-{label}", handle=Measurement, entry="training.compress.measure", spec=spec, night=engine.night,
            inputs={"model": model}, libraries=TORCH, app="torch", job="measure", dated=True,
        )
    )  # fmt: skip


def choose(
    models: Mapping[str, ModelFolder], scores: Mapping[str, Scorecard], measured: Mapping[str, Measurement], spec: BudgetSpec
) -> CompressionChoice:  # fmt: skip
    """All candidates in one table and one picture, and the best of those within the budget."""
    engine = current_engine()
    inputs: dict[str, Handle] = {}
    for part, handles in (("model", models), ("score", scores), ("measurement", measured)):
        inputs |= {f"{part}.{label}": handle for label, handle in handles.items()}
    return engine.run(
        Step(
            name="choose", handle=CompressionChoice, entry="training.compress.choose", spec=spec, night=engine.night,
            inputs=inputs, libraries=("numpy",), app="torch",
        )
    )  # fmt: skip
