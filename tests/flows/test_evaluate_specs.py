"""Presets of benchmarks, what is wrong with a spec, and what the nightly asks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flows.evaluate_benchmarks import EvaluateReport
from flows.evaluate_command import print_evaluate
from flows.evaluate_specs import evaluate_preset_names, load_evaluate_spec
from flows.specs import load_spec
from spark_jobs.errors import RequestError
from training.benchmarks.results import BenchmarkResult, OverlapResult
from training.metrics.proportion import proportion
from training.specs import EvaluateSpec

EVERYDAY = "evaluate.benchmarks=[{name: everyday, folder: examples/benchmarks/everyday}]"


@pytest.mark.parametrize("preset", evaluate_preset_names())
def test_every_preset_is_a_valid_run_spec(preset: str) -> None:
    assert load_evaluate_spec(preset, []).name == preset


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["benchmarks=[]"], "benchmarks: .*at least 1"),
        (["benchmarks=[{name: a, folder: x}, {name: a, folder: y}]"], "benchmarks: 'a' names more than one"),
        (["benchmarks=[{name: a}]"], "benchmark a: wanted one of folder and harness"),
        (
            ["benchmarks=[{name: a, folder: x, harness: {tasks: [t], include_path: y}}]"],
            "wanted one of folder and harness",
        ),
        (
            ["benchmarks=[{name: a, harness: {tasks: [t], include_path: y}, shards: 2}]"],
            "harness tasks are one shard, got shards 2",
        ),
        (["benchmarks=[{name: a, harness: {tasks: [], include_path: y}}]"], "tasks: .*at least 1"),
        (
            ["benchmarks=[{name: a, harness: {tasks: [t], include_path: y}, data: z}]"],
            "harness tasks name their data themselves",
        ),
        (["benchmarks=[{name: A b, folder: x}]"], r"name: String should match pattern"),
        (["benchmarks.0.batch_tokns=3"], "no such setting"),
        (["model.hub=x/y"], "one of path, package, pipeline, hub is wanted"),
    ],
)
def test_spec_that_cannot_be_asked_names_the_setting(settings: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_evaluate_spec("demo", settings)


def test_nightly_takes_benchmarks_and_refuses_two_of_one_name() -> None:
    assert load_spec("demo", [EVERYDAY]).evaluate.benchmarks[0].name == "everyday"
    with pytest.raises(RequestError, match="'everyday' names more than one"):
        load_spec("demo", [EVERYDAY.replace("]", ", {name: everyday, folder: x}]")])


def test_benchmarks_are_no_part_of_what_scores_of_documents_depend_on() -> None:
    assert "benchmarks" in EvaluateSpec.unkeyed
    assert load_spec("demo", []).evaluate.benchmarks == ()


def test_table_tells_scores_slices_counts_and_contamination() -> None:
    score = proportion("accuracy", [True, True, False])
    overlap = OverlapResult(
        overlap_tokens=13, num_judged=3, num_contaminated=1, share=score, clean=score,
        contaminated=proportion("accuracy", [True]),
    )  # fmt: skip
    result = BenchmarkResult(
        kind="multiple_choice", version="2", main="accuracy", higher_is_better=True, scores={"accuracy": score},
        slices={"part": {"x": score}}, counts={"boundary": 2, "tied": 0}, contamination=overlap,
    )  # fmt: skip
    report = EvaluateReport(status="done", night="2026-01-01", results={"mine": result}, folder="/somewhere")
    stream = io.StringIO()
    print_evaluate(Console(file=stream, width=140), report)
    said = stream.getvalue()
    assert "mine (multiple_choice, version 2)" in said
    assert "accuracy, part x" in said
    assert "2 boundary; 1 of 3 stand in the training corpus; accuracy 0.6667 without them, 1.0000 of them" in said
    assert "tied" not in said
