"""What a search over hyper-parameters is asked to do: what is varied, how trials are chosen, compared and stopped early."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from spark_jobs.manifests import Frozen
from training.finetune_spec import FinetuneSpec, ScoreTaskSpec

Values = dict[str, JsonValue]  # dotted path of the run's spec -> value

SECTIONS = ("finetune", "augment", "base")  # of the run's spec, that may vary
ERRORS = ("mse", "mae", "rmse", "brier", "ece", "nll")  # metrics of which less is better


class ParameterSpec(Frozen):
    """One setting that is varied: a list of choices, or a range of numbers."""

    path: str = Field(
        description="Dotted path in the run's spec, for example finetune.optimizer.learning_rate; of the sections finetune, "
        "augment and base. What is labelled and scored stays the same for all trials, or they could not be compared."
    )
    choices: tuple[JsonValue, ...] = Field((), description="The values it may take. Empty: a range, low to high.")
    low: int | float | None = Field(
        None, description="Smallest value. Both ends without a point: only whole numbers between them."
    )
    high: int | float | None = Field(None, description="Largest value, itself included.")
    log: bool = Field(False, description="Draw the logarithm evenly: for rates, and whatever spans decades.")
    num_points: int = Field(3, ge=2, le=1000, description="grid: values of a range, both ends included.")

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @field_validator("path")
    @classmethod
    def of_a_section_that_may_vary(cls, path: str) -> str:
        if path.split(".")[0] not in SECTIONS or not all(path.split(".")):
            raise ValueError(f"{path!r}: wanted a dotted path that begins with {', '.join(SECTIONS)}")
        return path

    @model_validator(mode="after")
    def choices_or_range(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError(f"{self.path}: choices and a range do not go together; leave low, high and log out")
            return self
        if self.low is None or self.high is None:
            raise ValueError(f"{self.path}: wanted choices, or both low and high")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{self.path}: low {self.low} must be below high {self.high}, both finite")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.path}: log wants low above 0, got {self.low}")
        return self


class PruningSpec(Frozen):
    """Which trials stop early. They are compared where they have cost the same: after so many folds, or at a budget."""

    kind: Literal["none", "median", "halving"] = Field(
        "none",
        description="median: stop a trial that is worse than the median of all that came as far (Golovin et al. 2017). "
        "halving: go on with the best 1/reduction of all that came as far (arXiv:1810.05934).",
    )
    budgets: tuple[float, ...] = Field(
        (),
        description="Shares of finetune.epochs at which trials are compared, rising, below 1; each budget trains anew, with the "
        "whole schedule. Empty: they are compared after each fold.",
    )
    reduction: int = Field(2, ge=2, le=10, description="halving: one of so many trials goes on.")
    min_trials: int = Field(3, ge=2, description="Trials that must have come as far before the first is stopped there.")

    @model_validator(mode="after")
    def budgets_rise(self) -> Self:
        rising = all(a < b for a, b in zip(self.budgets, self.budgets[1:], strict=False))
        if not rising or any(not 0 < share < 1 for share in self.budgets):
            raise ValueError(f"pruning.budgets {list(self.budgets)}: wanted rising shares above 0 and below 1")
        if self.kind == "none" and self.budgets:
            raise ValueError("pruning.budgets are for a kind of pruning; set pruning.kind to median or halving")
        return self


class SearchSpec(Frozen):
    """What is varied, how trials are chosen and compared. The test split is never part of it."""

    method: Literal["grid", "random", "bayesian"] = Field(
        "bayesian",
        description="grid: every combination. random: independent draws. bayesian: Optuna's TPE (arXiv:2304.11127), which "
        "learns from finished trials, in waves of max_parallel.",
    )
    space: tuple[ParameterSpec, ...] = Field(min_length=1, description="The settings that are varied.")
    num_trials: int = Field(12, ge=1, le=10_000, description="Trials in all; of a grid, the most it may have.")
    num_random: int = Field(4, ge=1, description="bayesian: trials drawn at random before it learns.")
    metric: str = Field("", description="Name in scores.json of the task. Empty: the task's main one.")
    direction: Literal["maximize", "minimize"] = Field("maximize", description="Whether more of the metric is better.")
    folds: int = Field(
        1,
        ge=1,
        le=100,
        description="1: trials are scored on the validation split. k: train and validation together are cut in k by hash; "
        "each part is scored by a model trained on the others, and a trial's value is the mean.",
    )
    pruning: PruningSpec = PruningSpec()
    max_parallel: int = Field(
        2,
        ge=1,
        le=1024,
        description="Trainings at the same time, at most. bayesian: also trials proposed at once, so it changes which.",
    )
    seed: int = Field(0, ge=0, description="Of the proposals and of the folds.")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Where trials are compared, in order; the last is the whole trial."""
        every = tuple(range(self.folds))
        if self.pruning.budgets:
            return tuple(Stage(folds=every, budget=share) for share in (*self.pruning.budgets, 1.0))
        if self.pruning.kind != "none":
            return tuple(Stage(folds=(fold,), budget=1.0) for fold in every)
        return (Stage(folds=every, budget=1.0),)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        paths = [parameter.path for parameter in self.space]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        if twice:
            raise ValueError(f"search.space has {twice[0]} twice; keep one")
        if self.metric in ERRORS and self.direction == "maximize":
            raise ValueError(f"search.metric {self.metric} is an error: set search.direction to minimize")
        inside = [(a, b) for a in paths for b in paths if b.startswith(a + ".")]
        if inside:
            raise ValueError(f"search.space: {inside[0][1]} lies inside {inside[0][0]}; keep one")
        if self.pruning.kind != "none" and self.folds == 1 and not self.pruning.budgets:
            raise ValueError(
                f"pruning.kind {self.pruning.kind} has nothing to compare before the end: set folds above 1, or "
                "pruning.budgets, for example [0.25]"
            )
        return self


class Stage(Frozen):
    """A part of a trial: these folds, trained for this share of the epochs."""

    folds: tuple[int, ...]
    budget: float


class FoldSpec(Frozen):
    """One of the parts into which train and validation are cut."""

    number: int = Field(ge=0, description="Which part is scored.")
    folds: int = Field(ge=2, description="Parts in all.")
    seed: int = Field(0, ge=0, description="Of the hash that deals rows to parts.")


class TrialSpec(Frozen):
    """One training of one trial, scored on the validation split of its labelled set."""

    finetune: FinetuneSpec
    score: ScoreTaskSpec
    metric: str = Field("", description="Empty: the task's main one.")
