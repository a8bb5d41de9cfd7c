"""What a trial is: values, the pieces it is trained in, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from spark_jobs.errors import DataError
from spark_jobs.manifests import Frozen
from training.search_spec import SearchSpec, Values


class Piece(Frozen):
    """What is trained at once: one fold of one trial, for a share of the epochs."""

    trial: int
    values: Values
    fold: int
    budget: float


class PieceScore(Frozen):
    """value is None where training or scoring failed for a reason of its own; `failure` says which."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    failure: str = ""


class Trial(Frozen):
    """stages: mean score over the folds so far (or of the budget), a number a stage. scores: of the folds, of the last
    stage where stages are budgets. value: of the whole trial; None unless it finished."""

    number: int
    values: Values
    state: Literal["running", "finished", "pruned", "failed"] = "running"
    stages: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    value: float | None = None
    low: float | None = Field(None, description="Of the 95 % interval, where the trial is one piece.")
    high: float | None = None
    why: str = ""


def best_trial(search: SearchSpec, trials: Sequence[Trial]) -> Trial:
    """Of equals the first. Raises: DataError if none finished, with the reasons."""
    sign = 1 if search.direction == "maximize" else -1
    finished = [(sign * trial.value, -trial.number, trial) for trial in trials if trial.value is not None]
    if not finished:
        told = "; ".join(dict.fromkeys(trial.why for trial in trials))
        raise DataError(f"search: none of {len(trials)} trials finished ({told}); narrow search.space")
    return max(finished, key=lambda entry: entry[:2])[2]
