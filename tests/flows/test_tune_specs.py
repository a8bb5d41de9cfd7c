"""A search is refused at once where a value of its space cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from flows.spec_files import validated
from flows.tune_specs import TuneRunSpec, load_tune_spec, tune_preset_names
from spark_jobs.errors import RequestError

RATE = "finetune.optimizer.learning_rate"
TREE: dict[str, Any] = {
    "name": "tiny",
    "label": {"task": "classification", "sources": [{"kind": "jsonl", "path": "/x", "columns": {"text": "t", "labels": "l"}}]},
    "base": {"path": "/base"},
    "finetune": {"ranks": 1, "epochs": 2},
}  # fmt: skip


def spec(*space: dict[str, Any], **search: Any) -> TuneRunSpec:
    return validated(TuneRunSpec, TREE | {"search": {"space": list(space)} | search})


def test_values_of_a_trial_are_those_of_a_finetuning_that_runs_alone():
    run = spec({"path": RATE, "low": 1e-5, "high": 1e-3}).with_values({RATE: 3e-4, "finetune.method": {"kind": "lora"}})
    assert run.finetune.optimizer.learning_rate == 3e-4
    assert run.finetune.method.kind == "lora"
    assert run.finetune.epochs == 2
    assert not hasattr(run, "search")


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"path": "finetune.optimizer.learning_rat", "low": 0.1, "high": 0.2}, "learning_rat: no such setting"),
        ({"path": "finetune.optimiser.learning_rate", "choices": [1]}, "no such setting, or its section is not set"),
        ({"path": "augment.seed", "choices": [1]}, "its section is not set in this preset"),
        ({"path": "finetune.method.rank", "low": 0, "high": 8}, r"rank = 0: finetune\.method\.rank: .*greater than or equal"),
        ({"path": "finetune.method.rank", "low": 1, "high": 5000}, r"rank = 5000: .*less than or equal to 1024"),
        ({"path": "finetune.method.rank", "low": 2.0, "high": 5.0}, "valid integer"),
        ({"path": "finetune.method.kind", "choices": ["lora", "loar"]}, "'loar': .*Input should be"),
        ({"path": "finetune.task.kind", "choices": ["tagging"]}, "make them equal"),
    ],
)  # fmt: skip
def test_wrong_end_or_choice_is_refused_naming_setting_and_value(parameter, message):
    with pytest.raises(RequestError, match=message) as refused:
        spec(parameter)
    assert len(str(refused.value)) < 400  # the whole spec is not printed


def test_grid_with_more_points_than_trials_is_refused():
    with pytest.raises(RequestError, match="the grid has 4 points, num_trials is 3"):
        spec({"path": "finetune.seed", "choices": [1, 2, 3, 4]}, method="grid", num_trials=3)


def test_grid_with_a_point_that_cannot_be_is_refused():
    frozen = {"path": "finetune.method.frozen_layers", "choices": [0, 2]}
    with pytest.raises(RequestError, match="frozen_layers 2 is for kind full"):
        spec(frozen, {"path": "finetune.method.kind", "choices": ["full", "lora"]}, method="grid")


@pytest.mark.parametrize("preset", tune_preset_names())
def test_shipped_preset_is_valid(preset):
    loaded = load_tune_spec(preset, ["search.num_trials=5", "search.space.0.log=false"])
    assert loaded.search.num_trials == 5
    assert not loaded.search.space[0].log
