"""Two nights of the real flow, one under tensor parallel, the next going on from its champion in a pipeline."""

from __future__ import annotations

from typing import Any

import pytest

from training.manifests import Checkpoint, ModelFolder
from training.model_folder import load_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEADS = "train.model.num_kv_heads=2"  # so that two ranks can share them


def output_of(report: Any, step: str) -> str:
    (found,) = (line.output for line in report.steps if line.step == step)
    return str(found)


@pytest.mark.long
def test_champion_of_a_tensor_parallel_night_goes_on_in_a_pipeline(pipeline: Any, write_topics: Any) -> None:
    first = pipeline.run(HEADS, "train.parallel.tp=2")
    assert set(pipeline.states(first).values()) == {"ran"}
    champion = ModelFolder.load(pipeline.workspace.at(output_of(first, "export")))
    model = load_model(champion)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    write_topics(pipeline.texts, 2)
    second = pipeline.run(HEADS, "train.parallel.pp=2", night="2026-11-26")
    trained = Checkpoint.load(pipeline.workspace.at(output_of(second, "train")))
    assert trained.resumed_from == champion.address
    assert trained.num_parameters == champion.num_parameters
    assert pipeline.states(second)["release"] == "ran"
