"""A night that asks benchmarks: of the candidate, with its corpus searched for the items; the gate and the page go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.workspace import Workspace
from training.benchmarks.results import read_results
from training.manifests import BenchmarkScorecard, Verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NIGHT = "2026-11-25"
EVERYDAY = Path(__file__).parents[2] / "examples" / "benchmarks" / "everyday"
ASKED = f"evaluate.benchmarks=[{{name: everyday, folder: {EVERYDAY}, overlap_tokens: 4}}]"


def scorecard(workspace: Workspace) -> BenchmarkScorecard:
    name = next(name for name in workspace.record(NIGHT).outputs if name.startswith("benchmarks-"))
    return workspace.output(NIGHT, name, BenchmarkScorecard, "evaluate-model")


@pytest.mark.long
def test_night_asks_its_candidate_and_searches_its_corpus_for_the_items(pipeline: Any) -> None:
    report = pipeline.run(ASKED, night=NIGHT)
    states = pipeline.states(report)
    assert states["answer-everyday"] == states["measure-overlap"] == "ran"
    result = read_results(Path(scorecard(pipeline.workspace).folder()) / "scores.json")["everyday"]
    assert result.scores["accuracy_norm"].n == 12
    assert result.contamination is not None
    assert result.contamination.num_judged == 12
    assert (
        pipeline.workspace.output(NIGHT, "gate", Verdict, "evaluate-model").candidate
        == scorecard(pipeline.workspace).model
    )
    again = pipeline.states(pipeline.run(ASKED, night=NIGHT))
    assert again["answer-everyday"] == again["measure-overlap"] == "cached"
