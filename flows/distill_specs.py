"""A distillation as one frozen model: the sections of a fine-tuning, the teacher, and where the student comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from flows.finetune_specs import ScoreSpec
from flows.spec_files import load_preset, presets_in
from spark_jobs.label_spec import LabelSpec
from spark_jobs.manifests import Frozen
from training.augment_spec import AugmentSpec
from training.finetune_spec import FinetuneSpec, ImportModelSpec, ScoreTaskSpec
from training.student_spec import StudentSpec

PRESETS = Path(__file__).parent / "presets" / "distill"


class TeacherSpec(Frozen):
    """A model that was fine-tuned for the same task and label set."""

    model: ImportModelSpec | None = Field(None, description="A folder, a package's, or a repository of the hub.")
    finetune: str = Field("", description="Or what `nightmill finetune` made last under this name.")

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if (self.model is None) == (not self.finetune):
            raise ValueError("teacher: one of model, finetune is wanted")
        return self


class DistillRunSpec(Frozen):
    """From files of examples and a teacher to a smaller model that is scored beside it."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Workspace, and experiment in MLflow. Lower-case letters, digits, dashes.",
    )
    label: LabelSpec
    augment: AugmentSpec | None = Field(None, description="Rows made from those of the training split; none: no more.")
    teacher: TeacherSpec
    student: StudentSpec
    finetune: FinetuneSpec
    score: ScoreSpec = ScoreSpec()

    @model_validator(mode="after")
    def one_task_with_a_teacher(self) -> Self:
        if self.label.task != self.finetune.task.kind:
            raise ValueError(
                f"label.task is {self.label.task}, finetune.task.kind is {self.finetune.task.kind}: make them equal"
            )
        if self.finetune.distill is None:
            raise ValueError(
                "finetune.distill is not set: say how the teacher is learned from, or run nightmill finetune"
            )
        return self

    def scoring(self) -> ScoreTaskSpec:
        return ScoreTaskSpec(task=self.finetune.task, seed=self.finetune.seed, **self.score.model_dump())


def load_distill_spec(preset: str, settings: list[str]) -> DistillRunSpec:
    """See `flows.spec_files.load_preset`."""
    return load_preset(DistillRunSpec, PRESETS, preset, settings)


def distill_preset_names() -> list[str]:
    return presets_in(PRESETS)
