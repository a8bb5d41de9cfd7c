"""A fine-tuning as one frozen model: YAML preset, `--set a.b=c` and the form in the Prefect UI are all this."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from flows.spec_files import load_preset, presets_in
from spark_jobs.label_spec import LabelSpec
from spark_jobs.manifests import Frozen
from training.augment_spec import AugmentSpec
from training.ensemble_spec import AVERAGED, EnsembleSpec
from training.finetune_spec import FinetuneSpec, ImportModelSpec, ScoreTaskSpec

PRESETS = Path(__file__).parent / "presets" / "finetune"


class ScoreSpec(Frozen):
    """What the fine-tuned model is scored on."""

    split: Literal["validation", "test"] = Field("test", description="Rows that are scored.")
    max_rows: int = Field(0, ge=0, description="At most so many, lowest ids first; 0: all.")
    batch_size: int = Field(32, ge=1, description="Rows scored at once; changes speed, not numbers.")
    noise_share: float = Field(
        0.0, ge=0, le=1, description="Also score the same rows with this share of characters disturbed; 0: not."
    )


class FinetuneRunSpec(Frozen):
    """From files of examples and a base model to a scored model for one task."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Workspace, and experiment in MLflow. Lower-case letters, digits, dashes.",
    )
    label: LabelSpec
    augment: AugmentSpec | None = Field(None, description="Rows made from those of the training split; none: no more.")
    base: ImportModelSpec
    finetune: FinetuneSpec
    ensemble: EnsembleSpec | None = Field(None, description="Several seeds as one model; none: finetune.seed alone.")
    score: ScoreSpec = ScoreSpec()

    @model_validator(mode="after")
    def members_have_a_mean(self) -> Self:
        if self.ensemble is None:
            return self
        kind = self.finetune.task.kind
        if self.ensemble.average == "probabilities" and kind not in AVERAGED:
            raise ValueError(
                f"ensemble.average probabilities: answers of {kind} are texts or spans, which have no mean; take weights"
            )
        if self.finetune.method.kind in ("prefix", "prompt", "adapter"):
            raise ValueError(
                f"ensemble with method.kind {self.finetune.method.kind}: it does not become weights, of which a mean could be; take lora"
            )
        return self

    @model_validator(mode="after")
    def one_task(self) -> Self:
        if self.label.task != self.finetune.task.kind:
            raise ValueError(
                f"label.task is {self.label.task}, finetune.task.kind is {self.finetune.task.kind}: make them equal"
            )
        return self

    def scoring(self) -> ScoreTaskSpec:
        return ScoreTaskSpec(task=self.finetune.task, seed=self.finetune.seed, **self.score.model_dump())


def load_finetune_spec(preset: str, settings: list[str]) -> FinetuneRunSpec:
    """See `flows.spec_files.load_preset`."""
    return load_preset(FinetuneRunSpec, PRESETS, preset, settings)


def finetune_preset_names() -> list[str]:
    return presets_in(PRESETS)
