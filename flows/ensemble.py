"""What `finetune` does where a spec asks for an ensemble: a training a seed, then all of them as one."""

from __future__ import annotations

from flows.finetune_specs import FinetuneRunSpec
from flows.scores import read_scores
from spark_jobs.manifests import LabelledSet
from tasks.engine import is_planned
from tasks.ensemble_steps import average_models, score_ensemble
from tasks.finetune_steps import export_task, finetune_checkpoint, score_task
from training.ensemble_spec import AVERAGED, EnsembleSpec
from training.manifests import ModelFolder, TaskScorecard
from training.metrics.score import Score


def train_ensemble(
    labelled: LabelledSet, base: ModelFolder, spec: FinetuneRunSpec, ensemble: EnsembleSpec
) -> tuple[ModelFolder, dict[str, Score]]:
    """The model to use, and scores: of what `ensemble.average` says under the metrics' own names, the rest under theirs."""
    members = [trained(labelled, base, spec, seed) for seed in ensemble.seeds]
    cards = {
        f"seed-{seed}": score_task(member, labelled, spec.scoring(), base)
        for seed, member in zip(ensemble.seeds, members, strict=True)
    }
    soup = average_models(members)
    cards["weights"] = score_task(soup, labelled, spec.scoring(), base)
    if spec.finetune.task.kind in AVERAGED:
        cards["probabilities"] = score_ensemble(members, labelled, spec.scoring())
    return soup, gathered(cards, ensemble.average)


def trained(labelled: LabelledSet, base: ModelFolder, spec: FinetuneRunSpec, seed: int) -> ModelFolder:
    checkpoint = finetune_checkpoint(labelled, base, spec.finetune.model_copy(update={"seed": seed}))
    return export_task(checkpoint, base, labelled)


def gathered(cards: dict[str, TaskScorecard], chosen: str) -> dict[str, Score]:
    """{} of a plan."""
    if any(is_planned(card) for card in cards.values()):
        return {}
    scores = dict(read_scores(cards[chosen]))
    for name, card in cards.items():
        first, score = next(iter(read_scores(card).items()))
        scores[f"{name}/{first}"] = score
    return scores
