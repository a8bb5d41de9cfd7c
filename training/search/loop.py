"""The loop of a search: waves of proposals, each taken stage by stage, bad trials stopped between stages.

What is proposed and what is stopped depends on the spec and on earlier trials in order of their numbers, never on which was
faster: a search that was killed and goes on, or runs on other machines, has the same trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

from training.search.proposals import propose
from training.search.pruning import reason_to_stop
from training.search.trials import Piece, PieceScore, Trial
from training.search_spec import SearchSpec, Stage

Evaluate = Callable[[Sequence[Piece]], Sequence[PieceScore | None]]


def run_search(search: SearchSpec, evaluate: Evaluate) -> Iterator[list[Trial]]:
    """Its waves, as they end: all trials in order, each of which is finished, pruned or failed.

    evaluate: scores of pieces, in their order; None for one that is not there and shall not be made, which ends the search
    before its wave.
    """
    trials: list[Trial] = []
    while wave := propose(search, trials):
        for number, stage in enumerate(search.stages):
            pieces = [
                Piece(trial=trial.number, values=trial.values, fold=fold, budget=stage.budget)
                for trial in wave if trial.state == "running" for fold in stage.folds
            ]  # fmt: skip
            scores = evaluate(pieces)
            if any(score is None for score in scores):
                return
            told = {(p.trial, p.fold): score for p, score in zip(pieces, scores, strict=True) if score is not None}
            wave = _compared(search, number, trials, [_scored(search, stage, trial, told) for trial in wave])
        yield wave
        trials += wave


def is_whole(search: SearchSpec, trials: Sequence[Trial]) -> bool:
    return not propose(search, trials)


def _scored(search: SearchSpec, stage: Stage, trial: Trial, told: dict[tuple[int, int], PieceScore]) -> Trial:
    """The trial with the scores of one more stage."""
    if trial.state != "running":
        return trial
    found = [told[trial.number, fold] for fold in stage.folds]
    failures = [f"fold {fold}: {s.failure}" for fold, s in zip(stage.folds, found, strict=True) if s.value is None]
    if failures:
        return trial.model_copy(
            update={"state": "failed", "why": failures[0] if search.folds > 1 else found[0].failure}
        )
    new = tuple(score.value for score in found if score.value is not None)
    scores = new if search.pruning.budgets else trial.scores + new
    update: dict[str, Any] = {"scores": scores, "stages": (*trial.stages, fmean(scores))}
    if search.folds == 1:
        update |= {"low": found[0].low, "high": found[0].high}
    return trial.model_copy(update=update)


def _compared(search: SearchSpec, number: int, earlier: Sequence[Trial], wave: list[Trial]) -> list[Trial]:
    """The wave after stage `number`: finished if that was the last, else some pruned."""
    if number == len(search.stages) - 1:
        return [
            t.model_copy(update={"state": "finished", "value": t.stages[-1]}) if t.state == "running" else t for t in wave
        ]  # fmt: skip
    seen = [trial.stages[number] for trial in (*earlier, *wave) if len(trial.stages) > number]
    return [_pruned(search, number, trial, seen) for trial in wave]


def _pruned(search: SearchSpec, number: int, trial: Trial, seen: Sequence[float]) -> Trial:
    if trial.state != "running":
        return trial
    why = reason_to_stop(search.pruning, search.direction, trial.stages[number], seen)
    if not why:
        return trial
    stage = search.stages[number]
    where = f"at {stage.budget:g} of the epochs" if search.pruning.budgets else f"after fold {stage.folds[-1]}"
    return trial.model_copy(update={"state": "pruned", "why": f"{where} {why}"})
