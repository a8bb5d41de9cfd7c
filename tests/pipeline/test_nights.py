"""Nights in a row on real engines: first, again, planned, next, quiet, changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.report import NightReport
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Corpus, Documents
from tasks import fingerprints
from tasks.engine import Engine, engine_in_use
from tasks.ledger import champion_now, read_ledger
from tasks.watch_steps import look_at_traffic, traffic_folder, watch_reference
from training.evaluate.documents import load_tokenizer
from training.manifests import Checkpoint, ModelFolder, WatchReference
from training.watch.sketch import TrafficSketch
from training.watch.spec import ReferenceSpec, WatchSpec

TONIGHT, NEXT, QUIET = "2026-11-25", "2026-11-26", "2026-11-27"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def first(pipeline: Any) -> NightReport:
    return pipeline.run(night=TONIGHT)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def second(pipeline: Any, first: NightReport, write_topics: Callable[..., Path]) -> NightReport:
    write_topics(pipeline.texts, nights=2)  # rewrites night-0 with the same bytes and adds night-1
    return pipeline.run(night=NEXT)  # type: ignore[no-any-return]


def test_first_night_runs_every_step_and_crowns_its_model(pipeline: Any, first: NightReport) -> None:
    assert first.status == "done"
    assert {step.state for step in first.steps} == {"ran"}
    assert len(first.steps) == 23
    assert first.decision.startswith("promoted")
    assert first.model is not None
    assert first.model.version == "1"
    assert 0 < first.metrics["dense_bits_per_byte"] < 8


def test_first_night_accounts_for_every_row(pipeline: Any, first: NightReport) -> None:
    record = pipeline.workspace.record(TONIGHT)
    for step in ("ingest", "clean", "dedup"):
        counts = Documents.load(pipeline.workspace.at(record.outputs[step].address)).counts
        rejected = sum(n for reason, n in counts.items() if reason.startswith("reject."))
        assert counts["in"] == counts["out"] + rejected, step


def test_champion_loads_and_speaks_without_nightmill(pipeline: Any, first: NightReport) -> None:
    example = Path(__file__).parent.parent.parent / "examples" / "load_champion.py"
    done = subprocess.run([sys.executable, str(example), "tiny", "The"], capture_output=True, text=True, check=True)
    folder, text = done.stdout.split("\n", 1)
    assert first.model is not None
    assert first.model.address in folder
    assert text.startswith("The")


def test_same_night_again_is_all_cached(pipeline: Any, first: NightReport) -> None:
    again = pipeline.run(night=TONIGHT)
    assert {step.state for step in again.steps} == {"cached"}
    assert [s.output for s in again.steps] == [s.output for s in first.steps]
    assert len(read_ledger(pipeline.workspace)) == 1


def test_plan_of_a_finished_night_says_cached_and_writes_nothing(pipeline: Any, first: NightReport) -> None:
    before = sorted(pipeline.workspace.root.rglob("*"))
    plan = pipeline.run(night=TONIGHT, planning=True)
    assert {step.state for step in plan.steps} == {"cached"}
    assert sorted(pipeline.workspace.root.rglob("*")) == before


def test_plan_after_a_kernel_edit_names_the_module_and_the_steps_behind(
    pipeline: Any, first: NightReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fingerprints._read_module
    monkeypatch.setattr(
        fingerprints, "_read_module", lambda m: ("edited", real(m)[1]) if m == "spark_jobs.text_rules" else real(m)
    )
    plan = {step.step: (step.state, step.why) for step in pipeline.run(night=TONIGHT, planning=True).steps}
    assert plan["ingest"][0] == "cached"
    assert plan["clean"] == ("would run", "code spark_jobs.text_rules")
    assert plan["dedup"] == ("would run", "after clean")
    assert {state for state, _ in plan.values()} == {"cached", "would run"}
    assert plan["release"][0] == "would run"


def test_plan_of_the_next_night_runs_it_in_thought(pipeline: Any, first: NightReport) -> None:
    plan = {step.step: (step.state, step.why) for step in pipeline.run(night="2026-12-24", planning=True).steps}
    assert plan["ingest"] == ("would run", "night 2026-11-25 -> 2026-12-24; input history")
    assert plan["tokenizer"][0] == "cached"
    assert plan["evaluate-champion"] == ("would run", "after corpus")
    assert plan["release"][0] == "would run"


def test_next_night_reads_only_new_documents(pipeline: Any, second: NightReport) -> None:
    record = pipeline.workspace.record(NEXT)
    ingested = Documents.load(pipeline.workspace.at(record.outputs["ingest"].address))
    assert ingested.counts["in"] < 62
    assert ingested.num_rows > 0
    steps = {step.step: step for step in second.steps}
    for step in ("ingest", "clean", "dedup", "check-documents", "tokenize", "check-tokens", "corpus", "train"):
        assert steps[step].state == "ran", step
    assert steps["tokenizer"].state == "cached"
    assert "kept from 2026-11-25" in steps["tokenizer"].why


def test_next_night_trains_on_from_the_champion_with_all_nights_in_the_corpus(
    pipeline: Any, second: NightReport
) -> None:
    outputs = pipeline.workspace.record(NEXT).outputs
    corpus = Corpus.load(pipeline.workspace.at(outputs["corpus"].address))
    checkpoint = Checkpoint.load(pipeline.workspace.at(outputs["train"].address))
    assert [night.night for night in corpus.nights] == [TONIGHT, NEXT]
    assert checkpoint.parent("champion") is not None
    assert checkpoint.num_steps == 8


def test_next_night_is_gated_against_the_champion_and_written_down(pipeline: Any, second: NightReport) -> None:
    lines = read_ledger(pipeline.workspace)
    assert [line.night for line in lines] == [TONIGHT, NEXT]
    assert lines[1].previous_champion == lines[0].champion
    verdict = json.loads((pipeline.workspace.at(lines[1].evidence) / "data" / "verdict.json").read_text())
    assert verdict["num_documents"] >= 5


def test_earlier_night_stays_cached_after_a_later_one(pipeline: Any, second: NightReport) -> None:
    again = pipeline.run(night=TONIGHT)
    assert {step.state for step in again.steps} == {"cached"}


def test_night_without_new_documents_skips_the_rest_and_keeps_the_champion(pipeline: Any, second: NightReport) -> None:
    quiet = pipeline.run(night=QUIET)
    states = pipeline.states(quiet)
    assert states.pop("ingest") == "ran"
    assert set(states.values()) == {"skipped"}
    assert quiet.status == "done"
    assert quiet.decision == f"no new document since {NEXT}"
    assert len(read_ledger(pipeline.workspace)) == 2


def test_another_tokenizer_in_a_later_night_is_refused_with_the_way_out(pipeline: Any, second: NightReport) -> None:
    with pytest.raises(
        RequestError, match=r"tokenizer\.vocab_size is 600, but the tokenizer of night 2026-11-25 was made with 512"
    ):
        pipeline.run("tokenizer.vocab_size=600", night=NEXT)


def test_changed_setting_runs_only_what_depends_on_it(pipeline: Any, second: NightReport) -> None:
    plan = pipeline.run("gate.margin=0.4", night=NEXT, planning=True)
    changed = {step.step for step in plan.steps if step.state == "would run"}
    assert changed == {"gate", "report-evaluation", "release"}


def test_traffic_in_another_alphabet_is_drift_from_what_the_champion_was_trained_on(
    pipeline: Any, second: NightReport
) -> None:
    now = datetime(2026, 11, 27, 12, tzinfo=UTC)
    champion = champion_now(pipeline.workspace)
    assert champion is not None
    model = ModelFolder.load(pipeline.workspace.at(champion.address))
    encoder = load_tokenizer(Path(model.folder()))
    sketch = TrafficSketch(champion.address)
    for i in range(100):
        prompt = f"Кто знает, где находится станция номер {i}?"
        sketch.add(prompt, encoder.encode(prompt, add_special_tokens=False).ids, [5, 6, 7, 8, 9], None, "stop")
    day = traffic_folder(pipeline.workspace) / now.date().isoformat()
    day.mkdir(parents=True)
    (day / "host-1.jsonl").write_text(json.dumps(sketch.flush() | {"at": now.isoformat()}) + "\n")
    engine = Engine(pipeline.workspace, model.night)
    engine.applications = pipeline.applications
    spec = WatchSpec(min_requests=50, alpha=0.01, replicates=999)
    with engine_in_use(engine):
        found, again = (
            look_at_traffic(pipeline.workspace, spec, now, lambda m: watch_reference(m, ReferenceSpec(documents=100)))
            for _ in range(2)
        )
    assert [step.state for step in engine.results] == ["ran", "cached"]
    assert found.facts is not None
    assert {"language", "tokens"} <= set(found.facts.alarms)
    assert found.report == again.report
    reference = WatchReference.load(pipeline.workspace.at(engine.results[0].output))
    assert reference.model == champion.address
    assert reference.num_scored > 0


def test_guards_are_asked_for_what_they_need(pipeline: Any, second: NightReport) -> None:
    guards = "gate.guards={max_bytes_ratio: 1.5, max_latency_ratio: 3}"
    plan = {step.step: step for step in pipeline.run(guards, night=NEXT, planning=True).steps}
    assert {"measure-gate-candidate", "measure-gate-champion"} <= set(plan)
    assert plan["gate"].why == "after measure-gate-candidate, measure-gate-champion"
