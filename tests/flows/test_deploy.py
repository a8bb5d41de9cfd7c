"""prefect.yaml against a real Prefect server."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient

from flows.deploy import TAG, Applied, apply_file, prefect_file, read_prefect_file
from flows.finetune_specs import FinetuneRunSpec, load_finetune_spec
from flows.specs import NightlySpec, load_spec
from flows.tune_specs import TuneRunSpec, load_tune_spec
from spark_jobs.errors import RequestError


@pytest.fixture
def tree() -> dict:
    return yaml.safe_load(prefect_file().read_text())


@pytest.fixture
def apply(servers_home, tmp_path):
    """Write a tree to a file and apply it; returns name -> line of the table."""
    _, servers = servers_home

    def apply_tree(tree: dict) -> dict[str, Applied]:
        return {line.name: line for line in apply_file(written(tmp_path, tree), servers.api_url, servers.auth)}

    return apply_tree


@pytest.fixture
def client(servers_home):
    _, servers = servers_home
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:
        yield client


def written(folder: Path, tree: dict) -> Path:
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def nightly_of(tree: dict) -> dict:
    return next(entry for entry in tree["deployments"] if entry["name"] == "nightly")


def test_shipped_file_is_applied_and_a_second_time_changes_nothing(apply, tree):
    apply(tree)
    again = apply(tree)
    assert {line.state for line in again.values()} == {"unchanged"}
    assert set(again) == {"cpu", "gpu", "nightly/nightly"} | {
        f"{name}/{name}"
        for name in (
            "prepare-corpus",
            "train-model",
            "compress-model",
            "evaluate-model",
            "evaluate",
            "release-model",
            "approve-model",
            "maintenance",
            "watch-champion",
            "backfill",
            "sweep",
            "dead-man",
            "finetune",
            "tune",
            "distill",
        )
    }


def test_nightly_runs_at_two_utc_one_at_a_time_and_says_so_in_its_form(apply, tree, client):
    apply(tree)
    nightly = client.read_deployment_by_name("nightly/nightly")
    (schedule,) = nightly.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone, schedule.active) == ("0 2 * * *", "Etc/UTC", True)
    assert nightly.global_concurrency_limit.limit == 1
    assert nightly.concurrency_options.collision_strategy == "ENQUEUE"
    assert nightly.work_pool_name == "cpu"
    assert nightly.entrypoint == "flows.nightly.nightly"
    assert NightlySpec.model_validate(nightly.parameters["spec"]) == load_spec("demo", [])
    steps = nightly.parameter_openapi_schema["definitions"]["TrainSpec"]["properties"]
    assert steps["num_steps"]["minimum"] == 1
    assert "Optimizer steps" in steps["num_steps"]["description"]


def test_form_of_finetune_starts_as_the_preset_that_needs_no_file(apply, tree, client):
    apply(tree)
    finetune = client.read_deployment_by_name("finetune/finetune")
    assert finetune.work_pool_name == "gpu"
    assert FinetuneRunSpec.model_validate(finetune.parameters["spec"]) == load_finetune_spec("topics", [])
    methods = finetune.parameter_openapi_schema["definitions"]["MethodSpec"]["properties"]["kind"]
    assert "lora" in methods["enum"]


def test_tune_is_the_preset_topics_and_its_form_says_what_is_varied(apply, tree, client):
    apply(tree)
    deployed = client.read_deployment_by_name("tune/tune")
    assert TuneRunSpec.model_validate(deployed.parameters["spec"]) == load_tune_spec("topics", [])
    assert deployed.work_pool_name == "gpu"
    search = deployed.parameter_openapi_schema["definitions"]["SearchSpec"]["properties"]
    assert search["num_trials"]["minimum"] == 1
    assert "validation split" in search["folds"]["description"]


def test_changed_schedule_replaces_the_old_one(apply, tree, client):
    apply(tree)
    nightly_of(tree)["schedules"][0]["cron"] = "0 4 * * *"
    assert apply(tree)["nightly/nightly"].changed == ("schedules",)
    (schedule,) = client.read_deployment_by_name("nightly/nightly").schedules
    assert schedule.schedule.cron == "0 4 * * *"


def test_schedule_that_left_the_file_leaves_the_server(apply, tree, client):
    apply(tree)
    del nightly_of(tree)["schedules"]
    assert apply(tree)["nightly: nightly"].state == "removed"
    assert client.read_deployment_by_name("nightly/nightly").schedules == []


def test_deployment_that_left_the_file_starts_nothing_any_more(apply, tree, client):
    apply(tree)
    tree["deployments"] = [entry for entry in tree["deployments"] if entry["name"] != "nightly"]
    assert apply(tree)["nightly: nightly"].state == "removed"
    assert client.read_deployment_by_name("nightly/nightly").schedules == []


def test_pool_limit_is_updated(apply, tree, client):
    apply(tree)
    tree["definitions"]["pools"]["gpu"]["concurrency_limit"] = 2
    assert apply(tree)["gpu"].changed == ("concurrency_limit",)
    assert client.read_work_pool("gpu").concurrency_limit == 2


def test_every_deployment_carries_the_tag_by_which_it_is_found_again(apply, tree, client):
    apply(tree)
    assert all(TAG in deployment.tags for deployment in client.read_deployments())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: nightly_of(tree).update(scedules=[]), r"deployments\.0\.scedules: no such key"),
        (lambda tree: nightly_of(tree)["schedules"][0].update(cron=3), r"schedules\.0\.cron: .* got 3"),
        (lambda tree: nightly_of(tree)["work_pool"].update(name="tpu"), "no work pool 'tpu' in definitions.pools"),
        (lambda tree: tree.update(pull=[{"git_clone": {}}]), "pull: "),
    ],
)
def test_wrong_file_is_refused_naming_the_place(tmp_path, tree, change, message):
    change(tree)
    with pytest.raises(RequestError, match=message):
        read_prefect_file(written(tmp_path, tree))


def test_wrong_parameter_is_refused_naming_the_setting(apply, tree):
    nightly_of(tree)["parameters"]["spec"]["train"] = {"num_step": 5}
    with pytest.raises(RequestError, match=r"train\.num_step: no such setting; did you mean num_steps"):
        apply(tree)
