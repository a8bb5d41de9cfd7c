"""The steps of a distillation that a fine-tuning has not."""

from __future__ import annotations

from spark_jobs.errors import RequestError
from spark_jobs.manifests import MANIFEST, LabelledSet
from tasks.engine import current_engine
from tasks.finetune_steps import PEFT, import_model
from tasks.model_steps import TORCH
from tasks.steps import Step
from tasks.workspace import Workspace
from training.finetune.compare import COMPARED
from training.finetune_spec import FinetuneSpec, ImportModelSpec, ScoreTaskSpec
from training.manifests import ModelFolder, TaskCheckpoint, TaskComparison, TaskScorecard
from training.student_spec import MadeStudentSpec, StudentSpec


def newest_finetuned(name: str) -> ImportModelSpec:
    """The folder that the fine-tuning called `name` exported last. Raises: RequestError if there is none."""
    workspace = Workspace.of(name)
    found = sorted(
        workspace.at(ModelFolder.kind).glob(f"export-task-*/{MANIFEST}"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise RequestError(
            f"teacher.finetune {name}: nothing was fine-tuned under this name yet; run nightmill finetune {name} first"
        )
    return ImportModelSpec(path=str(found[-1].parent / "data"))


def make_student(teacher: ModelFolder, spec: StudentSpec, seed: int) -> ModelFolder:
    """An imported model, blocks of the teacher, or a new one with its vocabulary."""
    if spec.base is not None:
        return import_model(spec.base)
    engine = current_engine()
    job = MadeStudentSpec(cut=spec.cut, new=spec.new, seed=seed if spec.new is not None else 0)
    return engine.run(
        Step(
            name="make-student", handle=ModelFolder, entry="training.distill.student", spec=job, night=engine.night,
            inputs={"teacher": teacher}, libraries=TORCH, app="torch",
        )
    )  # fmt: skip


def distill_checkpoint(
    labelled: LabelledSet, student: ModelFolder, teacher: ModelFolder, spec: FinetuneSpec
) -> TaskCheckpoint:
    """What the student learned from labels and teacher."""
    engine = current_engine()
    return engine.run(
        Step(
            name="finetune", handle=TaskCheckpoint, entry="training.finetune.main", spec=spec, night=engine.night,
            inputs={"labelled": labelled, "base": student, "teacher": teacher}, libraries=PEFT, app="torch",
        )
    )  # fmt: skip


def compare_scores(
    ours: TaskScorecard, theirs: TaskScorecard, labelled: LabelledSet, spec: ScoreTaskSpec
) -> TaskComparison | None:
    """One model minus another on the same rows; None for tasks that are not compared by rows."""
    if spec.task.kind not in COMPARED:
        return None
    engine = current_engine()
    return engine.run(
        Step(
            name="compare-tasks", handle=TaskComparison, entry="training.finetune.compare", spec=spec, night=engine.night,
            inputs={"ours": ours, "theirs": theirs, "labelled": labelled}, libraries=("numpy", "pyarrow"), app="torch",
        )
    )  # fmt: skip
