"""A champion watched: looks, reports, episodes, retention; with published handles and a ledger as a night leaves them."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from spark_jobs.errors import DataError
from spark_jobs.manifests import MANIFEST, FileEntry, Handle, Parent, file_sha256
from tasks.ledger import LedgerLine, write_decision
from tasks.retention import plan_retention
from tasks.retention_spec import RetentionSpec
from tasks.watch_alarms import STATE, read_state, tell_alarms
from tasks.watch_steps import forget_old, look_at_traffic, traffic_folder, trained_on
from tasks.workspace import Workspace
from training.manifests import ModelFolder, WatchReference
from training.watch.bins import LENGTH_EDGES, SHARE_EDGES, buckets_of
from training.watch.reference import ReferenceCounts, Texts, save
from training.watch.sketch import TrafficSketch, merge
from training.watch.spec import WatchSpec

NIGHT, MODEL = "2026-11-26", "models/export-1111111111111111"
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
SPEC = WatchSpec(alpha=0.01, replicates=999)
ENGLISH = "the quick brown fox jumps over the lazy dog and runs away from the old bear"
GERMAN = "der schnelle braune Fuchs springt über den faulen Hund und läuft vor dem Bären weg"


def publish(
    workspace: Workspace, kind: type[Handle], address: str, parents: tuple[Parent, ...] = (), **fields
) -> Handle:
    folder = workspace.at(address)
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(
        FileEntry(path=str(p.relative_to(folder)), size_bytes=p.stat().st_size, sha256=file_sha256(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    )
    step, _, key = folder.name.rpartition("-")
    common = {"format": "x", "spec": {}, "code": {}, "libraries": {}, "num_rows": 0}
    handle = kind(step=step, key=key, night=NIGHT, files=files, parents=parents, **(common | fields))
    (folder / MANIFEST).write_text(handle.canonical())
    return kind.load(folder)


def prompt_ids(rng: np.random.Generator, num_tokens: int = 24) -> list[int]:
    return (rng.zipf(1.4, num_tokens) % 500).tolist()


def sketched(
    seed: int, requests: int, text: str = ENGLISH, shift: int = 0, errors: int = 0, circling: bool = False
) -> dict:
    """Requests of one law; text, shift and circling change language, tokens and answers."""
    rng = np.random.default_rng(seed)
    sketch = TrafficSketch(MODEL)
    for _ in range(requests):
        ids = [i + shift for i in prompt_ids(rng)]
        answer = [7, 8] * 20 if circling else rng.integers(0, 500, 40).tolist()
        sketch.add(text, ids, answer, 3.0 * (len(ids) - 1) + rng.normal(), "stop")
    for _ in range(errors):
        sketch.error()
    return sketch.flush()


def answered(workspace: Workspace, line: dict, at: datetime, replica: str = "host-1") -> None:
    path = traffic_folder(workspace) / at.date().isoformat() / f"{replica}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(line | {"at": at.isoformat()}) + "\n")


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """A pipeline whose champion was decided on."""
    space = Workspace(tmp_path / "workspaces" / "demo")
    model = publish(
        space, ModelFolder, MODEL, (Parent(role="checkpoint", address="checkpoints/train-2", digest="d"),),
        scheme="dense", num_parameters=1, weight_bytes=1, effective_bits=32.0,
    )  # fmt: skip
    line = LedgerLine(
        night=NIGHT, decision="promoted", why="better", who="a test", candidate=MODEL, candidate_digest=model.digest,
        champion=MODEL, champion_digest=model.digest, champion_version="1", evidence="verdicts/gate-1", evidence_digest="v",
    )  # fmt: skip
    write_decision(space, line)
    return space


def snapshot(workspace: Workspace) -> WatchReference:
    """The snapshot of texts drawn as the usual traffic is."""
    address = "watch-references/watch-reference-3333333333333333"
    if not (workspace.at(address) / MANIFEST).is_file():
        line = merge([sketched(1000, 800)])
        rng = np.random.default_rng(99)
        documents = [buckets_of(prompt_ids(rng)) for _ in range(800)]
        counts = ReferenceCounts(
            languages=line["languages"], prompt_bytes=tuple(line["prompt_bytes"]), prompt_tokens=tuple(line["prompt_tokens"]),
            token_buckets=tuple(line["token_buckets"]), num_documents=800, num_tokens=19_200, finish={"stop": 60, "length": 4},
            answer_tokens=(0,) * len(LENGTH_EDGES), repetition=0.64, repetition_shares=(64, *(0,) * (len(SHARE_EDGES) - 1)),
        )  # fmt: skip
        nats = [np.full(40, 3.0, np.float32) + rng.normal(0, 0.2, 40).astype(np.float32) for _ in range(64)]
        save(workspace.at(address) / "data", counts, Texts(buckets=documents, nats=nats))
        publish(
            workspace,
            WatchReference,
            address,
            model=MODEL,
            num_documents=800,
            num_tokens=19_200,
            num_scored=64,
            num_answers=64,
        )
    return WatchReference.load(workspace.at(address))


def look(workspace: Workspace, now: datetime = NOW, **spec):
    settings = SPEC.model_copy(update=spec)
    return look_at_traffic(workspace, settings, now, lambda _model: snapshot(workspace))


def outcomes(found) -> dict[str, str]:
    return {check.name: check.outcome for check in found.facts.checks}


def test_traffic_as_in_training_is_ok_and_the_report_is_published(workspace):
    for minute in range(10):
        answered(workspace, sketched(minute, 40), NOW - timedelta(minutes=minute))
    found = look(workspace)
    assert found.status == "ok"
    assert set(outcomes(found).values()) == {"ok", "not compared"}
    assert outcomes(found)["answer_tokens"] == "not compared"
    folder = Path(found.report.folder())
    assert sorted(p.name for p in folder.iterdir()) == ["distributions.svg", "page.html", "report.json"]
    assert json.loads((folder / "report.json").read_text())["num_requests"] == 400
    assert "as expected" in (folder / "page.html").read_text()


def test_the_same_look_twice_is_one_report_of_the_same_bytes(workspace):
    answered(workspace, sketched(0, 300), NOW)
    first, again = look(workspace), look(workspace)
    assert first.report.digest == again.report.digest
    assert len(list(workspace.at("watch-reports").iterdir())) == 1


def test_another_language_is_drift_of_language_alone(workspace):
    answered(workspace, sketched(0, 300, text=GERMAN), NOW)
    found = look(workspace)
    drifted = {name for name, outcome in outcomes(found).items() if outcome == "drift"}
    assert "language" in drifted
    assert not drifted & {"tokens", "prompt_tokens", "perplexity", "errors", "repetition", "cut"}
    assert found.status == "alarm"


def test_other_tokens_errors_and_answers_in_a_circle_are_each_found(workspace):
    answered(workspace, sketched(0, 300, shift=1000, errors=40, circling=True), NOW)
    drifted = {name for name, outcome in outcomes(look(workspace)).items() if outcome == "drift"}
    assert {"tokens", "errors", "repetition"} <= drifted
    assert not drifted & {"language", "prompt_tokens", "perplexity", "cut"}


def test_few_requests_never_alarm_whatever_they_are(workspace):
    answered(workspace, sketched(0, 60, text=GERMAN, shift=1000, errors=60, circling=True), NOW)
    found = look(workspace)
    assert found.status == "too few"
    assert set(outcomes(found).values()) == {"too few", "not compared"}
    assert "of at least 200" in Path(found.report.folder(), "page.html").read_text()


def test_lines_of_the_champion_before_are_not_counted(workspace):
    answered(workspace, sketched(0, 300), NOW)
    answered(workspace, sketched(0, 500, text=GERMAN) | {"model": "models/export-0000000000000000"}, NOW)
    found = look(workspace)
    assert (found.status, found.facts.num_requests) == ("ok", 300)
    assert found.facts.other_models == {"models/export-0000000000000000": 500}


def test_against_earlier_traffic_what_was_always_so_is_no_drift(workspace):
    for hour in range(2, 30):
        answered(workspace, sketched(hour, 60, text=GERMAN), NOW - timedelta(hours=hour))
    answered(workspace, sketched(0, 300, text=GERMAN), NOW)
    assert outcomes(look(workspace))["language"] == "drift"
    against = outcomes(look(workspace, against="traffic"))
    assert (against["language"], against["tokens"], against["answer_tokens"]) == ("ok", "ok", "ok")
    answered(workspace, sketched(5, 900, text=ENGLISH), NOW - timedelta(minutes=1))
    assert outcomes(look(workspace, against="traffic"))["language"] == "drift"


def test_no_champion_and_no_traffic_are_said_and_need_no_snapshot(tmp_path, workspace):
    def never(_model: ModelFolder) -> WatchReference:
        raise AssertionError("no snapshot is wanted")

    assert look_at_traffic(workspace, SPEC, NOW, never).status == "no traffic"
    assert look_at_traffic(Workspace(tmp_path / "workspaces" / "new"), SPEC, NOW, never).status == "no champion"


def test_silence_is_told_where_requests_should_have_come_and_not_at_a_quiet_hour(workspace):
    for minute in range(15, 75):
        answered(workspace, sketched(minute, 2), NOW - timedelta(minutes=minute))
    assert look(workspace).silent == "alarm"
    assert look(workspace, NOW - timedelta(minutes=6)).silent == "clear"
    quiet = Workspace(workspace.root.parent / "quiet")
    answered(quiet, sketched(0, 1), NOW - timedelta(minutes=40))
    assert look_at_traffic(quiet, SPEC, NOW, snapshot).silent == "unknown"


def test_a_server_that_says_it_is_idle_is_not_silent(workspace):
    for minute in range(15, 75):
        answered(workspace, sketched(minute, 20), NOW - timedelta(minutes=minute))
    answered(workspace, sketched(0, 0), NOW - timedelta(minutes=1))
    assert look(workspace).silent == "clear"


def tell(workspace: Workspace, found, told: list):
    return tell_alarms(workspace, found, SPEC, lambda alarm, payload, event: told.append((alarm.name, payload, event)))


def test_drift_is_told_once_with_its_facts_and_once_more_when_it_is_over(workspace):
    told: list[tuple[str, dict, uuid.UUID]] = []
    for step, text in enumerate([ENGLISH, GERMAN, GERMAN, GERMAN, ENGLISH, ENGLISH, ENGLISH]):
        now = NOW + timedelta(hours=2 * step)
        answered(workspace, sketched(step, 300, text=text), now)
        tell(workspace, look(workspace, now), told)
    assert [name for name, _, _ in told] == ["nightmill.drift", "nightmill.drift.resolved"]
    _, payload, event = told[0]
    assert payload["pipeline"] == "demo"
    assert "language" in payload["checks"]
    assert payload["values"]["language"]["value"] > payload["values"]["language"]["threshold"]
    assert Path(payload["page"]).is_file()
    assert "differs in" in payload["message"]
    assert json.loads(json.dumps(payload)) == payload
    assert event != told[1][2]
    assert read_state(workspace).open == {}


def test_event_sent_by_a_watch_that_died_before_it_kept_its_state_is_sent_again_as_the_same(workspace):
    answered(workspace, sketched(0, 300, text=GERMAN), NOW)
    told: list[tuple[str, dict, uuid.UUID]] = []
    tell(workspace, look(workspace), told)
    (workspace.root / STATE).unlink()
    tell(workspace, look(workspace), told)
    assert len(told) == 2
    assert told[0][2] == told[1][2]


def test_event_that_could_not_be_sent_is_tried_again_at_the_next_look(workspace):
    answered(workspace, sketched(0, 300, text=GERMAN), NOW)

    def broken(*_told: object) -> None:
        raise ConnectionError("no server")

    with pytest.raises(ConnectionError):
        tell_alarms(workspace, look(workspace), SPEC, broken)
    told: list[tuple[str, dict, uuid.UUID]] = []
    tell(workspace, look(workspace), told)
    assert [name for name, _, _ in told] == ["nightmill.drift"]


def test_damaged_state_is_taken_as_none(workspace):
    (workspace.root / STATE).write_text("{")
    assert read_state(workspace).open == {}


def test_old_traffic_and_reports_go_and_the_newest_report_stays(workspace):
    import os

    for days in (40, 31, 29, 0):
        now = NOW - timedelta(days=days)
        answered(workspace, sketched(days, 300), now)
        report = look(workspace, now).report
        os.utime(Path(report.uri) / MANIFEST, (now.timestamp(), now.timestamp()))
    gone = forget_old(workspace, SPEC, NOW)
    assert sum(path.startswith("watch-reports/") for path in gone) == 2
    assert sorted(p.name for p in traffic_folder(workspace).iterdir()) == ["2026-10-29", "2026-11-27"]
    assert len(list(workspace.at("watch-reports").iterdir())) == 2


def test_model_that_no_corpus_leads_to_is_told_so(workspace):
    model = publish(
        workspace,
        ModelFolder,
        "models/import-4444444444444444",
        scheme="dense",
        num_parameters=1,
        weight_bytes=1,
        effective_bits=32.0,
    )
    with pytest.raises(DataError, match="was not trained on a corpus of demo"):
        trained_on(workspace, model)
    with pytest.raises(DataError, match="cannot be read"):
        trained_on(workspace, ModelFolder.load(workspace.at(MODEL)))


def test_maintenance_keeps_reports_and_no_report_keeps_a_snapshot(workspace):
    answered(workspace, sketched(0, 300), NOW)
    found = look(workspace)
    later = (Path(found.report.uri) / MANIFEST).stat().st_mtime + 400 * 24 * 3600
    plan = plan_retention(workspace, RetentionSpec(), later)
    assert found.report.address in plan.kept
    assert snapshot(workspace).address in {removal.path for removal in plan.removed}
