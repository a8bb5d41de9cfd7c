"""A search in MLflow and in the Prefect UI: a run for it, one for each trial inside, the table of trials, the pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from tasks.artifacts import never_fails, publish_link
from tasks.engine import Engine
from tasks.tracking_observer import TrackingObserver, flatten, owner_tags
from training.manifests import SearchResult
from training.search.trials import Trial
from training.search_spec import SearchSpec

STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def key_of(spec: BaseModel) -> str:
    """Tells the searches of a night apart: MLflow lets no run change its parameters. spec: everything that was asked for."""
    return "search-" + hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:16]


def start_search(engine: Engine, search: SearchSpec, key: str) -> None:
    """The search's run in MLflow, inside the night's."""
    for observer in _trackers(engine):
        observer.send({
            "do": "start", "key": f"{observer.night}/{key}", "name": "search", "parent": observer.night,
            "tags": {"nightmill.night": observer.night, "nightmill.step": "search"} | owner_tags(),
            "params": flatten(search.model_dump(mode="json")),
        })  # fmt: skip


def track_trials(engine: Engine, trials: Sequence[Trial], key: str) -> None:
    """A run for each trial, inside the search's: parameters are what was varied, `score` has a point a stage."""
    for observer in _trackers(engine):
        parent = f"{observer.night}/{key}"
        for trial in trials:
            run = f"{parent}/{trial.number}"
            observer.send({
                "do": "start", "key": run, "name": f"trial {trial.number}", "parent": parent,
                "tags": {"nightmill.night": observer.night, "nightmill.step": "trial"} | owner_tags(),
                "params": {path: _text(value) for path, value in trial.values.items()},
            })  # fmt: skip
            for stage, score in enumerate(trial.stages):
                observer.send({"do": "metrics", "key": run, "values": {"score": score}, "step": stage})
            tags = {"nightmill.state": trial.state, "nightmill.why": trial.why}
            observer.send({"do": "end", "key": run, "status": STATUS[trial.state], "tags": tags})


def end_search(engine: Engine, result: SearchResult, trials: Sequence[Trial], key: str) -> None:
    """Pictures and table to MLflow; the table and a link to the pictures to Prefect."""
    for observer in _trackers(engine):
        run = f"{observer.night}/{key}"
        values = {"best": result.best, "value": result.value, "num_pruned": result.num_pruned}
        observer.send({"do": "metrics", "key": run, "values": values | {"num_failed": result.num_failed}})
        observer.send({"do": "artifacts", "key": run, "path": result.folder(), "to": "search"})
        observer.send({"do": "end", "key": run, "status": "FINISHED", "tags": {"nightmill.address": result.address}})
    _publish_table(result, trials)
    for picture in ("history", "importance"):
        path = Path(result.folder()) / f"{picture}.svg"
        publish_link(f"search-{picture}", path.as_uri(), path.name, f"{picture} of {result.num_rows} trials")


@never_fails
def _publish_table(result: SearchResult, trials: Sequence[Trial]) -> None:
    """An artifact `search-trials`, a version a search: a row a trial, the importance of each parameter in the heading."""
    from prefect.artifacts import create_table_artifact

    shares = json.loads((Path(result.folder()) / "importance.json").read_text())
    told = ", ".join(f"{path} {share:.2f}" for path, share in shares.items())
    create_table_artifact(
        key="search-trials",
        table=[
            {"trial": trial.number, "state": trial.state, result.metric: trial.value, "why": trial.why}
            | {path: _text(value) for path, value in trial.values.items()}
            for trial in trials
        ],
        description=f"Best: trial {result.best}, {result.metric} {result.value:.4f}. Importance: {told or 'not known'}",
    )


def _trackers(engine: Engine) -> Iterator[TrackingObserver]:
    return (observer for observer in engine.observers if isinstance(observer, TrackingObserver))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
