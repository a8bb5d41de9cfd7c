"""Examples and a base model -> a scored model for one task. Deployment `finetune`, pool `gpu`."""

from __future__ import annotations

from typing import Literal

from prefect import flow
from pydantic import Field

from flows.engines import engine_open
from flows.ensemble import train_ensemble
from flows.finetune_specs import FinetuneRunSpec
from flows.night import scheduled_night
from flows.scores import read_scores
from spark_jobs.manifests import Frozen
from tasks.engine import StepResult, is_planned
from tasks.finetune_steps import (
    augment_rows,
    export_task,
    finetune_checkpoint,
    import_model,
    label_rows,
    score_task,
)
from training.metrics.score import Score


class FinetuneReport(Frozen):
    """What `nightmill finetune --json` prints as its last line."""

    status: Literal["done", "failed"]
    night: str
    seconds: float = 0.0
    steps: tuple[StepResult, ...] = ()
    task: str = ""
    model: str = Field("", description="Address of the model folder in the workspace.")
    folder: str = Field("", description="Where it lies: plain `from_pretrained` of the task's class loads it.")
    scores: dict[str, Score] = Field(default_factory=dict)
    decision: str = ""


@flow(name="finetune", flow_run_name="{spec.name} {night}")
def finetune(spec: FinetuneRunSpec, night: str = "") -> FinetuneReport:
    """Check the examples, import the base, train, export, score.

    A step that is finished is never run again; a killed run, started again, goes on where it stopped.

    Args:
        spec: What to do; one section a step.
        night: Logical night as YYYY-MM-DD, under which the run is kept. Empty: tonight (UTC), or the scheduled start.
    """
    with engine_open(spec, night or scheduled_night()) as engine:
        labelled = label_rows(spec.label)
        if spec.augment is not None:
            labelled = augment_rows(labelled, spec.augment)
        base = import_model(spec.base)
        if spec.ensemble is not None:
            model, scores = train_ensemble(labelled, base, spec, spec.ensemble)
        else:
            checkpoint = finetune_checkpoint(labelled, base, spec.finetune)
            model = export_task(checkpoint, base, labelled)
            card = score_task(model, labelled, spec.scoring(), base)
            scores = {} if is_planned(card) else read_scores(card)
        return FinetuneReport(
            status="done",
            night=engine.night,
            steps=tuple(engine.results),
            task=spec.finetune.task.kind,
            model=model.address,
            folder="" if is_planned(model) else model.folder(),
            scores=scores,
        )
