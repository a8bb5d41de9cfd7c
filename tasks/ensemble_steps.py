"""The steps of an ensemble: members of several seeds, scored alone, by their mean probabilities and by their mean weights."""

from __future__ import annotations

from collections.abc import Sequence

from spark_jobs.manifests import Handle, LabelledSet
from tasks.engine import current_engine
from tasks.finetune_steps import PEFT
from tasks.model_steps import TORCH
from tasks.steps import Step
from training.finetune_spec import ScoreTaskSpec
from training.manifests import ModelFolder, TaskScorecard
from training.specs import ExportSpec


def average_models(members: Sequence[ModelFolder]) -> ModelFolder:
    """The mean of their weights, as a model."""
    engine = current_engine()
    return engine.run(
        Step(
            name="average-models", handle=ModelFolder, entry="training.finetune.ensemble", spec=ExportSpec(),
            night=engine.night, inputs=_roles(members), libraries=TORCH, app="torch",
        )
    )  # fmt: skip


def score_ensemble(members: Sequence[ModelFolder], labelled: LabelledSet, spec: ScoreTaskSpec) -> TaskScorecard:
    """Scores of their mean probabilities."""
    engine = current_engine()
    return engine.run(
        Step(
            name="score-ensemble", handle=TaskScorecard, entry="training.finetune.ensemble", spec=spec, night=engine.night,
            inputs=_roles(members) | {"labelled": labelled}, libraries=PEFT, app="torch",
        )
    )  # fmt: skip


def _roles(members: Sequence[ModelFolder]) -> dict[str, Handle]:
    return {f"model-{number}": member for number, member in enumerate(members)}
