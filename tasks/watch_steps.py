"""Watching a champion: its snapshot as a step, one look as a report of its own, and what is too old to keep.

<workspace>/traffic/<day>/<host>-<pid>.jsonl     lines of servers, see training/watch/sketch.py
<workspace>/watch-reports/watch-<key>/           one look
<workspace>/watch.json                           alarms that are open, see tasks/watch_alarms.py
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from spark_jobs.errors import DataError
from spark_jobs.manifests import MANIFEST, Corpus, Handle, TokenizerFiles
from spark_jobs.requests import Outcome
from tasks.engine import current_engine
from tasks.ledger import champion_now
from tasks.locks import held
from tasks.model_steps import TORCH
from tasks.publishing import publish
from tasks.steps import Step, find
from tasks.usage import Meter
from tasks.workspace import Workspace
from training.manifests import ModelFolder, WatchReference, WatchReport
from training.watch.episodes import Sight
from training.watch.page import page_of
from training.watch.picture import picture
from training.watch.report import LookSpec, Status, WatchFacts, look, window_of
from training.watch.silence import silence
from training.watch.spec import ReferenceSpec, WatchSpec
from training.watch.traffic import Traffic, forget_days

LOCK_WAIT_S = 120.0
ROLES = ("checkpoint", "model", "dense")  # of a model's parents: towards the training it came out of


@dataclass(frozen=True)
class Look:
    """What one look found. facts, report: None where there is no champion, or no line of it in the window."""

    status: Status
    silent: Sight
    start: datetime
    end: datetime
    facts: WatchFacts | None = None
    report: WatchReport | None = None


def traffic_folder(workspace: Workspace) -> Path:
    return workspace.root / "traffic"


def look_at_traffic(
    workspace: Workspace, spec: WatchSpec, now: datetime, reference_of: Callable[[ModelFolder], WatchReference]
) -> Look:
    """The window up to `now` against the snapshot of today's champion. The snapshot is asked for where there is traffic."""
    folder = traffic_folder(workspace)
    start, end, traffic = window_of(folder, spec, now)
    silent = silence(folder, spec, now)
    champion = champion_now(workspace)
    if champion is None:
        return Look("no champion", silent, start, end)
    if not traffic.of(champion.address):
        return Look("no traffic", silent, start, end)
    reference = reference_of(ModelFolder.load(workspace.at(champion.address)))
    facts = look(workspace.name, folder, traffic, reference, spec, start, end)
    report = publish_look(workspace, facts, look_spec(spec, reference, traffic, start, end), reference.night)
    return Look(facts.status, silent, start, end, facts, report)


def watch_reference(model: ModelFolder, spec: ReferenceSpec) -> WatchReference:
    """The snapshot of what a model was trained on: a step of its night, made when it is first asked for."""
    engine = current_engine()
    corpus, tokenizer = trained_on(engine.workspace, model)
    return engine.run(
        Step(
            name="watch-reference", handle=WatchReference, entry="training.watch.snapshot", spec=spec, night=engine.night,
            inputs={"model": model, "corpus": corpus, "tokenizer": tokenizer}, libraries=(*TORCH, "tokenizers"), app="torch",
        )
    )  # fmt: skip


def trained_on(workspace: Workspace, model: ModelFolder) -> tuple[Corpus, TokenizerFiles]:
    """The corpus and tokenizer of the training that a model came out of, whatever was done to it since.

    Raises: DataError if its manifests do not lead to one (a model that was imported), or one of them is gone.
    """
    handle: Handle = model
    while handle.parent("corpus") is None:
        before = next((p for role in ROLES if (p := handle.parent(role)) is not None), None)
        if before is None:
            raise DataError(
                f"model {model.address} was not trained on a corpus of {workspace.name}, so traffic has nothing to be compared "
                "with: set watch.against=traffic after some days, or watch a pipeline that trains"
            )
        handle = _manifest(workspace, before.address)
    found = {role: handle.parent(role) for role in ("corpus", "tokenizer")}
    corpus = found["corpus"]
    tokenizer = found["tokenizer"]
    assert corpus is not None
    loaded = Corpus.load(workspace.at(corpus.address))
    address = tokenizer.address if tokenizer is not None else loaded.tokenizer.address
    return loaded, TokenizerFiles.load(workspace.at(address))


def _manifest(workspace: Workspace, address: str) -> Handle:
    """Any output, read for its parents only. Raises: DataError if it is gone."""
    path = workspace.at(address) / MANIFEST
    try:
        told = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as err:
        raise DataError(
            f"{path}: cannot be read, so the corpus behind the champion is not known; run its night again"
        ) from err
    common = {name: value for name, value in told.items() if name in Handle.model_fields}
    return Handle.model_validate(common | {"uri": str(path.parent)})


def look_spec(spec: WatchSpec, reference: WatchReference, traffic: Traffic, start: datetime, end: datetime) -> LookSpec:
    lines = sorted(line.model_dump_json() for line in traffic.lines)
    return LookSpec(
        watch=spec,
        model=reference.model,
        reference=reference.digest,
        start=start.isoformat(),
        end=end.isoformat(),
        traffic_sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    )


def publish_look(workspace: Workspace, facts: WatchFacts, spec: LookSpec, night: str) -> WatchReport:
    """Write the report at its address, once. It is no output of the night, so the night's record does not name it."""

    def work(attempt: Path) -> Outcome:
        data = attempt / "data"
        data.mkdir(parents=True, exist_ok=True)
        (data / "report.json").write_text(facts.model_dump_json(indent=1) + "\n")
        (data / "distributions.svg").write_text(picture(facts.distributions))
        (data / "page.html").write_text(page_of(facts))
        fields = {"status": facts.status, "start": facts.start, "end": facts.end, "num_requests": facts.num_requests}
        return Outcome(num_rows=len(facts.checks), format="json", fields=fields | {"alarms": facts.alarms})

    step = Step(
        name="watch", handle=WatchReport, entry="training.watch.page", entries=("training.watch.report",), spec=spec,
        night=night, libraries=("numpy", "scipy"), work=work,
    )  # fmt: skip
    attempt = workspace.attempt(f"watch-{step.key()}")
    with held(workspace.lock(f"watch-{step.key()}"), LOCK_WAIT_S) as lock:
        done, _ = find(step, workspace)
        if done is not None:
            return done
        shutil.rmtree(attempt, ignore_errors=True)
        attempt.mkdir(parents=True)
        with Meter(lambda: [psutil.Process()]) as meter:
            outcome = work(attempt)
        return publish(step, workspace, attempt, outcome, meter.usage, lock)


def forget_old(workspace: Workspace, spec: WatchSpec, now: datetime) -> list[str]:
    """Delete traffic and reports older than `keep_days`, but for the newest report; returns what went."""
    cutoff = now - timedelta(days=spec.keep_days)
    gone = [f"traffic/{day}" for day in forget_days(traffic_folder(workspace), cutoff.date())]
    reports = sorted(workspace.at(WatchReport.kind).glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    for path in reports[:-1]:
        if path.stat().st_mtime < cutoff.timestamp():
            path.unlink()  # first: without it there is no output for a reader to open
            shutil.rmtree(path.parent)
            gone.append(f"{WatchReport.kind}/{path.parent.name}")
    return gone
