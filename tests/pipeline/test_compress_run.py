"""Candidates of a night's model by the engine and real child processes: chains, choice, gate, and the night after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.compress_model import CompressReport, compress_model
from flows.report import NightReport
from flows.specs import load_spec
from tasks.application import Application, AppName
from tasks.engine import Engine, engine_in_use
from training.manifests import Calibration, Checkpoint, CompressionChoice, ModelFolder

NIGHT, NEXT = "2026-11-25", "2026-11-26"
FIXTURES = Path(__file__).parent.parent / "fixtures"
RECOVER = "{num_steps: 4, rate_ratio: 1.0}"
CHAIN = (
    "compress.recipes=["
    "{name: int8, quantize: {method: rtn, bits: 8, group_size: 16}},"
    f"{{name: sparse4, prune: {{pattern: '2:4'}}, recover: {RECOVER}, quantize: {{method: gptq, bits: 4, group_size: 16}}}},"
    f"{{name: narrow, shrink: {{neurons: 0.5}}, recover: {RECOVER}, export: safetensors}}]"
)
CHOOSE_SPARSE = "gate.candidate=sparse4"

pytestmark = [pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def night(pipeline: Any) -> NightReport:
    return pipeline.run(CHAIN, CHOOSE_SPARSE)  # type: ignore[no-any-return]


def folder_of(pipeline: Any, step: str, night: str = NIGHT) -> ModelFolder:
    return pipeline.workspace.output(night, step, ModelFolder, "compress-model")  # type: ignore[no-any-return]


def test_chain_of_a_recipe_prunes_recovers_quantises_and_goes_to_the_gate(pipeline: Any, night: NightReport) -> None:
    states = pipeline.states(night)
    assert [s for s in states if s.endswith("sparse4")] == [
        "thin-sparse4", "recover-sparse4", "export-sparse4", "compress-sparse4", "evaluate-sparse4", "measure-sparse4",
    ]  # fmt: skip
    assert night.decision.startswith("promoted")
    assert night.model is not None
    assert night.model.address == folder_of(pipeline, "compress-sparse4").address


def test_zeros_of_a_pruned_candidate_survive_training_and_rounding(pipeline: Any, night: NightReport) -> None:
    for step in ("thin-sparse4", "export-sparse4", "compress-sparse4"):
        model = AutoModelForCausalLM.from_pretrained(folder_of(pipeline, step).folder())
        model(torch.arange(8)[None])  # packed weights are decoded by the first forward
        for name, module in model.model.layers.named_modules():
            if isinstance(module, torch.nn.Linear):
                groups = module.weight.detach().reshape(len(module.weight), -1, 4)
                assert bool(((groups == 0).sum(dim=-1) >= 2).all()), f"{step} {name}"


def test_recovery_is_a_training_with_a_teacher(pipeline: Any, night: NightReport) -> None:
    checkpoint = pipeline.workspace.output(NIGHT, "recover-sparse4", Checkpoint, "compress-model")
    assert checkpoint.num_steps == 4
    assert checkpoint.parent("teacher").address == folder_of(pipeline, "export").address
    assert checkpoint.parent("start").address == folder_of(pipeline, "thin-sparse4").address


def test_shrunk_candidate_is_a_smaller_model_that_plain_transformers_loads(pipeline: Any, night: NightReport) -> None:
    dense, narrow = folder_of(pipeline, "export"), folder_of(pipeline, "compress-narrow")
    assert narrow.num_parameters < dense.num_parameters
    assert narrow.weight_bytes < dense.weight_bytes
    loaded = AutoModelForCausalLM.from_pretrained(narrow.folder())
    assert loaded.config.intermediate_size == 32
    assert loaded.num_parameters() == narrow.num_parameters


def test_every_candidate_has_a_report_a_card_and_its_true_size(pipeline: Any, night: NightReport) -> None:
    for name in ("int8", "sparse4", "narrow"):
        model = folder_of(pipeline, f"compress-{name}")
        folder = Path(model.folder())
        assert sum(p.stat().st_size for p in folder.glob("*.safetensors")) == model.weight_bytes
        assert str(model.weight_bytes) in (folder / "README.md").read_text().replace(",", "")
        assert model.scheme == name
    rows = pq.read_table(Path(folder_of(pipeline, "compress-int8").folder()) / "report.parquet").to_pylist()
    assert len(rows) == 14  # two blocks of seven matrices
    assert all(0 < row["error_after"] < 0.01 for row in rows)


def test_choice_shows_every_candidate_and_names_the_best(pipeline: Any, night: NightReport) -> None:
    choice = pipeline.workspace.output(NIGHT, "choose", CompressionChoice, "compress-model")
    folder = Path(choice.folder())
    found = {row["name"]: row for row in json.loads((folder / "candidates.json").read_text())["candidates"]}
    assert set(found) == {"dense", "int8", "sparse4", "narrow"}
    within = [row for row in found.values() if row["within_budget"]]
    assert choice.best == min(within, key=lambda row: row["weight_bytes"])["name"]
    assert found["dense"]["loss"] == 0.0
    assert (folder / "pareto.svg").read_text().count("<circle") == 4
    page = pipeline.workspace.root / "nights" / f"{NIGHT}.html"
    assert (folder / "pareto.svg").read_text() in page.read_text()


def test_calibration_tells_its_corpus_and_what_was_left_out(pipeline: Any, night: NightReport) -> None:
    calibration = pipeline.workspace.output(NIGHT, "calibrate", Calibration, "compress-model")
    assert 1 <= calibration.num_sequences <= 8
    assert calibration.parent("corpus") is not None
    assert calibration.num_overlapping >= 0


def test_another_recipe_beside_finished_ones_costs_only_itself(pipeline: Any, night: NightReport) -> None:
    more = CHAIN[:-1] + ",{name: int3, quantize: {method: rtn, bits: 3, group_size: 16}}]"
    plan = pipeline.run(more, CHOOSE_SPARSE, planning=True)
    assert {s.step for s in plan.steps if s.state == "would run"} == {
        "compress-int3", "evaluate-int3", "measure-int3", "choose", "report-evaluation",
    }  # fmt: skip


def test_night_after_trains_on_from_the_dense_model_behind_a_compressed_champion(
    pipeline: Any, night: NightReport, write_topics: Callable[..., Path]
) -> None:
    write_topics(pipeline.texts, nights=2)
    later = pipeline.run("compress.recipes=[]", "gate.candidate=dense", night=NEXT)
    assert later.status == "done"
    checkpoint = pipeline.workspace.output(NEXT, "train", Checkpoint, "train-model")
    assert checkpoint.parent("champion").address == folder_of(pipeline, "export").address
    assert "evaluate-champion" in pipeline.states(later)


def test_compress_flow_alone_reports_candidates_of_a_night(
    pipeline: Any, night: NightReport, applications: dict[AppName, Application]
) -> None:
    settings = [f"ingest.sources.0.path={pipeline.texts}", CHAIN, CHOOSE_SPARSE]
    spec = load_spec(str(FIXTURES / "tiny.yaml"), settings)
    engine = Engine(pipeline.workspace, NIGHT)
    engine.applications = applications
    engine.close = lambda: None  # type: ignore[method-assign]
    with engine_in_use(engine):
        report: CompressReport = compress_model.fn(spec, NIGHT)
    assert {step.state for step in report.steps} == {"cached"}
    assert len(report.candidates) == 4
    assert Path(report.choice, "candidates.md").is_file()
