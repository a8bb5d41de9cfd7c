"""Presets of fine-tuning, and what is wrong with a run spec."""

from __future__ import annotations

import pytest

from flows.finetune_specs import finetune_preset_names, load_finetune_spec
from spark_jobs.errors import RequestError


@pytest.mark.parametrize("preset", finetune_preset_names())
def test_every_preset_is_a_valid_run_spec(preset: str) -> None:
    assert load_finetune_spec(preset, []).name == preset


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["finetune.method.rnak=4"], r"finetune\.method\.rnak: no such setting; did you mean rank\?"),
        (["label.task=multi_label"], r"polarity\): lines has no multi_label, only classification"),
        (["finetune.task.kind=regression"], "label.task is classification, finetune.task.kind is regression"),
        (["base.path=/models/x"], "one of path, package, pipeline, hub is wanted, got path, package"),
        (["finetune.parallel.tp=2"], r"parallel\.tp 2: fine-tuning shares rows and shards weights"),
        (["finetune.method.frozen_layers=2"], "frozen_layers 2 is for kind full; lora changes no base weight"),
        (["finetune.loss.chunk_tokens=64"], "task heads have few logits"),
        (
            ["label.task=regression", "finetune.task.kind=regression", "finetune.loss.label_smoothing=0.1"],
            r"label_smoothing 0\.1 is a part of cross entropy, which regression does not have",
        ),
        (["score.split=train"], r"score\.split: .*'validation' or 'test'"),
    ],
)
def test_run_spec_that_cannot_be_done_names_the_setting_and_the_next_move(settings: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_finetune_spec("polarity", settings)
