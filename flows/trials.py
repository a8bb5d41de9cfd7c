"""The trials of a search as steps: found by address, or run on Dask; never both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flows.console import ConsoleObserver
from flows.finetune_specs import FinetuneRunSpec
from flows.tune_specs import TuneRunSpec
from spark_jobs.errors import DataError
from spark_jobs.manifests import LabelledSet
from tasks.engine import Engine, StepResult, current_engine, engine_in_use, is_planned
from tasks.finetune_steps import augment_rows, import_model, label_rows
from tasks.search_steps import files_sha256, fold_rows, trial_step
from tasks.search_worker import TrialJob
from tasks.steps import Step, find
from tasks.workspace import Workspace
from training.augment_spec import AugmentSpec
from training.finetune_spec import ImportModelSpec
from training.manifests import ModelFolder, TrialResult
from training.search.loop import run_search
from training.search.proposals import propose
from training.search.trials import Piece, PieceScore, Trial
from training.search_spec import FoldSpec, TrialSpec

if TYPE_CHECKING:  # a command that only looks must not import prefect: it has yet to tell it where its server is
    from prefect_dask import DaskTaskRunner


class Trials:
    """Scores of a search's pieces. What several pieces share (folds, made rows, bases) is made once, here.

    results: of every piece that is there, by a name that tells which.
    """

    def __init__(self, spec: TuneRunSpec, labelled: LabelledSet) -> None:
        self.spec, self.labelled = spec, labelled
        self.engine: Engine = current_engine()
        self.results: dict[str, TrialResult] = {}
        self._made: dict[str, Any] = {}

    def found(self, pieces: Sequence[Piece]) -> list[PieceScore | None]:
        """Scores of those that are finished; None for the others."""
        return [self._found(piece, step) for piece, step in self._steps(pieces)]

    def run(self, pieces: Sequence[Piece], runner: DaskTaskRunner) -> list[PieceScore | None]:
        """Scores of all: those that are not finished are run on Dask, two equal ones once.

        Raises: what a trial raised that can be tried again (a crash, a full disk); DataError if an output cannot be read.
        """
        from tasks.search_dask import run_on_dask

        planned = list(self._steps(pieces))
        jobs = {
            step.key(): (self._job(piece, step), step) for piece, step in planned
            if not isinstance(step, str) and find(step, self.engine.workspace)[0] is None
        }  # fmt: skip
        for job, result in run_on_dask(runner, [job for job, _ in jobs.values()], self.spec.search.max_parallel):
            self.engine.note(result)
            self._show(result, job)
        scores = [self._found(piece, step) for piece, step in planned]
        for piece, score in zip(pieces, scores, strict=True):
            if score is None:
                raise DataError(
                    f"{self._name(piece)}: its output is not where it was published; look at the disk, run again"
                )
        return scores

    def _steps(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Step[TrialResult] | str]]:
        """Each with its step, or with why its values do not go together."""
        for piece in pieces:
            try:
                run = self.spec.with_values(piece.values)
            except ValueError as error:
                yield piece, str(error)
            else:
                yield piece, self._step(piece, run)

    def _step(self, piece: Piece, run: FinetuneRunSpec) -> Step[TrialResult]:
        budget = run.finetune.model_copy(update={"epochs": run.finetune.epochs * piece.budget, "profile": None})
        score = run.scoring().model_copy(update={"split": "validation"})
        trial = TrialSpec(finetune=budget, score=score, metric=self.spec.search.metric)
        return trial_step(self.rows(piece.fold, run.augment), self.base(run.base), trial, self.engine.night)

    def rows(self, fold: int, augment: AugmentSpec | None) -> LabelledSet:
        """What a piece is trained and scored on. Rows are made after the cut: none from a row that is scored."""
        rows = self.labelled
        if self.spec.search.folds > 1:
            cut = FoldSpec(number=fold, folds=self.spec.search.folds, seed=self.spec.search.seed)
            rows = self._once(f"fold {cut!r}", lambda: fold_rows(self.labelled, cut))
        name = f"{augment!r}" if self.spec.search.folds == 1 else f"{fold} {augment!r}"
        return rows if augment is None else self._once(name, lambda: augment_rows(rows, augment))

    def rows_of(self, run: FinetuneRunSpec) -> LabelledSet:
        """The whole set, as a fine-tuning that is no trial sees it: the same as a trial's where there are no folds."""
        augment = run.augment
        return (
            self.labelled
            if augment is None
            else self._once(f"{augment!r}", lambda: augment_rows(self.labelled, augment))
        )

    @property
    def metric(self) -> str:
        """What trials are compared by: the one asked for, or the task's main one."""
        return next((r.metric for r in self.results.values() if r.value is not None), self.spec.search.metric)

    def same_bytes(self, best: Trial, model: ModelFolder) -> bool | None:
        """Whether the trial, trained alone, gave the files it gave as a trial. None with folds: its rows were others."""
        if self.spec.search.folds > 1:
            return None
        return self.results[f"trial {best.number}"].model_sha256 == files_sha256(model)

    def base(self, spec: ImportModelSpec) -> ModelFolder:
        found: ModelFolder = self._once(repr(spec), lambda: import_model(spec))
        return found

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _found(self, piece: Piece, step: Step[TrialResult] | str) -> PieceScore | None:
        if isinstance(step, str):
            return PieceScore(failure=step)
        if step.waits_for():
            return None
        handle = find(step, self.engine.workspace)[0]
        if handle is None:
            return None
        self.results[self._name(piece)] = handle
        return PieceScore(value=handle.value, low=handle.low, high=handle.high, failure=handle.failure)

    def _job(self, piece: Piece, step: Step[TrialResult]) -> TrialJob:
        assert isinstance(step.spec, TrialSpec)
        return TrialJob(
            name=self._name(piece), key=step.key(), root=str(self.engine.workspace.root), night=self.engine.night,
            labelled=step.inputs["labelled"].address, base=step.inputs["base"].address, spec=step.spec,
        )  # fmt: skip

    def _name(self, piece: Piece) -> str:
        fold = f" fold {piece.fold}" if self.spec.search.folds > 1 else ""
        budget = f" at {piece.budget:g}" if piece.budget < 1 else ""
        return f"trial {piece.trial}{fold}{budget}"

    def _show(self, result: StepResult, job: TrialJob) -> None:
        handle = TrialResult.load(self.engine.workspace.at(result.output))
        score = handle.failure if handle.value is None else f"{handle.metric} {handle.value:.4f}"
        for observer in self.engine.observers:
            if isinstance(observer, ConsoleObserver):
                observer.trial_scored(result, score)


def known_trials(spec: TuneRunSpec, night: str) -> list[Trial]:
    """The trials that are finished, and those that follow from them; by looking only."""
    with engine_in_use(Engine(Workspace.of(spec.name), night, planning=True)):
        labelled = label_rows(spec.label)
        if is_planned(labelled):
            return propose(spec.search, [])
        found = [trial for wave in run_search(spec.search, Trials(spec, labelled).found) for trial in wave]
        return [*found, *propose(spec.search, found)]
