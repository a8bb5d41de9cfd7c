"""Examples and a teacher -> a smaller model, scored beside its teacher. Deployment `distill`, pool `gpu`."""

from __future__ import annotations

from typing import Literal

from prefect import flow
from pydantic import Field

from flows.distill_specs import DistillRunSpec
from flows.engines import engine_open
from flows.night import scheduled_night
from flows.scores import read_scores
from spark_jobs.manifests import Frozen
from tasks.distill_steps import compare_scores, distill_checkpoint, make_student, newest_finetuned
from tasks.engine import StepResult, is_planned
from tasks.finetune_steps import augment_rows, export_task, import_model, label_rows, score_task
from training.manifests import ModelFolder, TaskComparison, TaskScorecard
from training.metrics.score import Score


class Contestant(Frozen):
    """One of the two models."""

    model: str = Field(description="Address of the model folder in the workspace.")
    folder: str
    num_parameters: int
    weight_bytes: int
    scores: dict[str, Score]


class PairedDifference(Frozen):
    """Student minus teacher, on the same rows."""

    metric: str
    value: float
    low: float
    high: float
    mcnemar_p: float | None


class DistillReport(Frozen):
    """What `nightmill distill --json` prints as its last line."""

    status: Literal["done", "failed"]
    night: str
    seconds: float = 0.0
    steps: tuple[StepResult, ...] = ()
    task: str = ""
    student: Contestant | None = None
    teacher: Contestant | None = None
    difference: PairedDifference | None = None
    decision: str = ""


@flow(name="distill", flow_run_name="{spec.name} {night}")
def distill(spec: DistillRunSpec, night: str = "") -> DistillReport:
    """Check the examples, import the teacher, make the student, train it with the teacher, score both.

    A step that is finished is never run again; a killed run, started again, goes on where it stopped.

    Args:
        spec: What to do; one section a step.
        night: Logical night as YYYY-MM-DD, under which the run is kept. Empty: tonight (UTC), or the scheduled start.
    """
    with engine_open(spec, night or scheduled_night()) as engine:
        labelled = label_rows(spec.label)
        if spec.augment is not None:
            labelled = augment_rows(labelled, spec.augment)
        teacher = import_model(spec.teacher.model or newest_finetuned(spec.teacher.finetune))
        base = make_student(teacher, spec.student, spec.finetune.seed)
        checkpoint = distill_checkpoint(labelled, base, teacher, spec.finetune)
        student = export_task(checkpoint, base, labelled)
        ours = score_task(student, labelled, spec.scoring())
        theirs = score_task(teacher, labelled, spec.scoring())
        compared = compare_scores(ours, theirs, labelled, spec.scoring())
        return DistillReport(
            status="done",
            night=engine.night,
            steps=tuple(engine.results),
            task=spec.finetune.task.kind,
            student=contestant(student, ours),
            teacher=contestant(teacher, theirs),
            difference=paired(compared),
        )


def contestant(model: ModelFolder, card: TaskScorecard) -> Contestant | None:
    """None of a plan."""
    if is_planned(model) or is_planned(card):
        return None
    return Contestant(
        model=model.address, folder=model.folder(), num_parameters=model.num_parameters, weight_bytes=model.weight_bytes,
        scores=read_scores(card),
    )  # fmt: skip


def paired(found: TaskComparison | None) -> PairedDifference | None:
    if found is None or is_planned(found):
        return None
    return PairedDifference(
        metric=found.metric, value=found.difference, low=found.low, high=found.high, mcnemar_p=found.mcnemar_p
    )
