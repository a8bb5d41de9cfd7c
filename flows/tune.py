"""A fine-tuning and a space of settings -> the best trial, trained alone and scored on test. Deployment `tune`, pool `gpu`."""

from __future__ import annotations

from functools import partial
from typing import Literal

from prefect import flow
from pydantic import Field

from flows.engines import engine_open
from flows.finetune_specs import FinetuneRunSpec
from flows.night import scheduled_night
from flows.scores import read_scores
from flows.trials import Trials
from flows.tune_specs import TuneRunSpec
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Frozen, LabelledSet
from tasks.engine import Engine, StepResult, is_planned
from tasks.finetune_steps import export_task, finetune_checkpoint, label_rows, score_task
from tasks.search_dask import trial_runner
from tasks.search_steps import report_search
from tasks.search_tracking import end_search, key_of, start_search, track_trials
from training.metrics.score import Score
from training.search.loop import is_whole, run_search
from training.search.report import SearchReportSpec
from training.search.trials import Trial, best_trial


class TuneReport(Frozen):
    """What `nightmill tune --json` prints as its last line."""

    status: Literal["done", "failed"]
    night: str
    seconds: float = 0.0
    steps: tuple[StepResult, ...] = ()
    task: str = ""
    metric: str = Field("", description="What trials were compared by, on validation or on folds.")
    trials: tuple[Trial, ...] = ()
    best: Trial | None = None
    search: str = Field("", description="Folder with trials.json, best.yaml and the pictures.")
    reproduced: bool | None = Field(
        None, description="Whether the best trial, trained alone, gave the same bytes. None: folds have other rows."
    )
    model: str = Field("", description="Address of the best trial's model.")
    folder: str = ""
    scores: dict[str, Score] = Field(default_factory=dict, description="Of the best trial's model, on score.split.")
    decision: str = ""


@flow(name="tune", flow_run_name="{spec.name} {night}")
def tune(spec: TuneRunSpec, night: str = "") -> TuneReport:
    """Search on validation or folds; then train the best trial alone, and score it once on test.

    A finished trial is never run again; a killed search, started again, goes on with the same trials.

    Args:
        spec: What to do; one section a step, and `search`.
        night: Logical night as YYYY-MM-DD, under which the run is kept. Empty: tonight (UTC), or the scheduled start.
    """
    with engine_open(spec, night or scheduled_night()) as engine:
        labelled = label_rows(spec.label)
        check_splits(spec, labelled)
        trials = Trials(spec, labelled)
        found = search_all(spec, trials, engine)
        if not is_whole(spec.search, found):
            return planned_report(engine, found)
        best = best_trial(spec.search, found)
        run = spec.with_values(best.values)
        search = report_search(report_spec(spec, run, found, trials), trials.results)
        rows, base = trials.rows_of(run), trials.base(run.base)
        checkpoint = finetune_checkpoint(rows, base, run.finetune)
        model = export_task(checkpoint, base, rows)
        card = score_task(model, rows, run.scoring())
        report = TuneReport(
            status="done",
            night=engine.night,
            steps=tuple(engine.results),
            task=run.finetune.task.kind,
            metric=trials.metric,
            trials=tuple(found),
            best=best,
            search="" if is_planned(search) else search.folder(),
            reproduced=None if is_planned(model) else trials.same_bytes(best, model),
            model=model.address,
            folder="" if is_planned(model) else model.folder(),
            scores={} if is_planned(card) else read_scores(card),
        )
        if not engine.planning:
            end_search(engine, search, found, key_of(spec))
        return report


def search_all(spec: TuneRunSpec, trials: Trials, engine: Engine) -> list[Trial]:
    """All trials; of a plan those that are finished, up to the first wave that is not."""
    found: list[Trial] = []
    with trial_runner() as runner:
        evaluate = trials.found if engine.planning else partial(trials.run, runner=runner)
        start_search(engine, spec.search, key_of(spec))
        for wave in run_search(spec.search, evaluate):
            found += wave
            track_trials(engine, wave, key_of(spec))
    return found


def check_splits(spec: TuneRunSpec, labelled: LabelledSet) -> None:
    """Raises: RequestError if there is nothing to compare trials on, or to score the best one on: now, not after the search."""
    if is_planned(labelled):
        return
    if spec.search.folds == 1 and not labelled.num_validation:
        raise RequestError(
            f"labelled set {labelled.address} has no validation split to compare trials on: set label.validation_share, or "
            "search.folds above 1"
        )
    if spec.score.split == "test" and not labelled.num_test:
        raise RequestError(
            f"labelled set {labelled.address} has no test split to score the best trial on: set label.test_share"
        )


def planned_report(engine: Engine, found: list[Trial]) -> TuneReport:
    """A plan cannot look behind the first trial that has to run."""
    engine.note(StepResult(step="search", state="would run", why=f"{len(found)} trials are finished"))
    for step in ("finetune", "export-task", "score-task"):
        engine.note(StepResult(step=step, state="would run", why="after search"))
    return TuneReport(status="done", night=engine.night, steps=tuple(engine.results), trials=tuple(found))


def report_spec(spec: TuneRunSpec, run: FinetuneRunSpec, found: list[Trial], trials: Trials) -> SearchReportSpec:
    return SearchReportSpec(
        search=spec.search, trials=tuple(found), run=run.model_dump(mode="json"), metric=trials.metric
    )
