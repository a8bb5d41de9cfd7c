"""A quality classifier in a night of the real flow on a real engine: trained once, found again, named when its folder changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.prepare_corpus import prepare_corpus
from flows.report import NightReport
from flows.specs import load_spec
from spark_jobs.manifests import Documents, QualityClassifier
from tasks.engine import Engine, engine_in_use

NIGHT = "2026-11-25"
TINY = str(Path(__file__).parent.parent / "fixtures" / "tiny.yaml")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def settings(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Good texts are paragraphs of the night's own documents, bad ones the same with their letters reversed."""
    folder = tmp_path_factory.mktemp("examples")
    lines = (pipeline.texts / "night-0.jsonl").read_text().splitlines()[:-1]
    paragraphs = sorted({part for line in lines for part in json.loads(line)["text"].split("\n\n") if len(part) > 200})
    for name, texts in (("good", paragraphs[::2]), ("bad", [part[::-1] for part in paragraphs[1::2]])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    paths = [f"clean.classifier.{name}={folder / name}.jsonl" for name in ("good", "bad")]
    return [f"ingest.sources.0.path={pipeline.texts}", *paths]


def prepare(pipeline: Any, settings: list[str], planning: bool = False) -> dict[str, Any]:
    """Step name -> its line of the report, of a corpus prepared by the flow."""
    spec = load_spec(TINY, settings)
    engine = Engine(pipeline.workspace, NIGHT, planning=planning)
    engine.applications = pipeline.applications
    engine.close = lambda: None  # type: ignore[method-assign]  # they serve the next test too
    with engine_in_use(engine):
        report: NightReport = prepare_corpus.fn(spec, NIGHT)
    return {step.step: step for step in report.steps}


@pytest.fixture(scope="module")
def first(pipeline: Any, settings: list[str]) -> dict[str, Any]:
    return prepare(pipeline, settings)


def test_classifier_is_trained_before_cleaning_and_scores_what_stays(pipeline: Any, first: dict[str, Any]) -> None:
    assert list(first)[:4] == ["ingest", "classifier", "clean", "dedup"]
    assert {step.state for step in first.values()} == {"ran"}
    classifier = QualityClassifier.load(pipeline.workspace.at(first["classifier"].output))
    cleaned = Documents.load(pipeline.workspace.at(first["clean"].output))
    assert classifier.auc > 0.99
    parent = cleaned.parent("classifier")
    assert parent is not None
    assert (parent.address, parent.digest) == (classifier.address, classifier.digest)
    assert "quality_score" in {column.name for column in cleaned.columns}


def test_another_threshold_cleans_again_with_the_same_classifier(
    pipeline: Any, settings: list[str], first: dict[str, Any]
) -> None:
    plan = prepare(pipeline, [*settings, "clean.classifier.min_score=0.9"], planning=True)
    assert plan["classifier"].state == "cached"
    assert plan["clean"].why == "spec classifier.min_score 0.0 -> 0.9"


def test_thresholds_of_the_score_are_reported(
    settings: list[str], first: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [argument for setting in settings for argument in ("--set", setting)]
    assert main(["report", "thresholds", TINY, *chosen, "--night", NIGHT]) == 0
    table = capsys.readouterr().out.partition("low_quality, at least")[2]
    assert [f"{tenth / 10:g}" in table for tenth in range(1, 10)] == [True] * 9


def test_a_changed_folder_is_named_and_untrained_classifiers_are_refused(
    pipeline: Any, settings: list[str], first: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(settings[1].partition("=")[2])
    before = path.read_bytes()
    try:
        path.write_bytes(before + b'{"text": "one more"}\n')
        plan = prepare(pipeline, settings, planning=True)
        assert plan["classifier"].state == "would run"
        assert plan["classifier"].why.startswith("spec digests.good")
        assert plan["clean"].why == "after classifier"
        chosen = [argument for setting in settings for argument in ("--set", setting)]
        assert main(["report", "thresholds", TINY, *chosen, "--night", NIGHT]) == 2
        assert "not trained" in capsys.readouterr().err
    finally:
        path.write_bytes(before)
