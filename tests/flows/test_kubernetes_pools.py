"""infra/pools on a real Prefect server, and the Jobs that come of them against the published schemas of Kubernetes."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient

from flows.deploy import apply_file, prefect_file, read_templates
from spark_jobs.errors import RequestError

TEMPLATES = Path(__file__).parents[2] / "infra" / "pools"
NAMESPACE = Path(__file__).parents[2] / "infra" / "kubernetes" / "namespace.yaml"
PLACE = re.compile(r"\{\{ (\w+) \}\}")
AUTOSCALER_S = 900  # a GPU node that has to be bought, booted, and to pull an image of several GB


def template(name: str) -> dict[str, Any]:
    return read_templates(TEMPLATES, [name])[name]


def filled(tree: Any, values: dict[str, Any]) -> Any:
    """As Prefect fills a template: a value that is one place keeps its type; what has no value is left out."""
    if isinstance(tree, dict):
        done = {key: filled(value, values) for key, value in tree.items()}
        return {key: value for key, value in done.items() if value is not None}
    if isinstance(tree, list):
        return [filled(value, values) for value in tree]
    whole = PLACE.fullmatch(tree) if isinstance(tree, str) else None
    if whole:
        return values.get(whole[1])
    return PLACE.sub(lambda found: str(values[found[1]]), tree) if isinstance(tree, str) else tree


def job_of(name: str) -> dict[str, Any]:
    """The Job of a run with nothing changed."""
    told = template(name)
    values = {key: field.get("default") for key, field in told["variables"]["properties"].items()}
    values |= {"name": "night-1", "labels": {}, "annotations": {}, "command": ["prefect", "flow-run", "execute"]}
    return filled(told["job_configuration"]["job_manifest"], values)


def pod_of(name: str) -> dict[str, Any]:
    return job_of(name)["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("release", ["1.31", "1.34"])
def test_job_of_a_pool_is_what_kubernetes_publishes_as_a_job(name: str, release: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = job_of(name)
    kubernetes_validate.validate(job, release, strict=True)
    wrong = copy.deepcopy(job)
    wrong["spec"]["template"]["spec"]["completions"] = 1  # where Prefect's own template has it
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, release, strict=True)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_every_place_of_a_template_has_a_variable_and_every_variable_a_place(name: str) -> None:
    told = template(name)
    assert set(PLACE.findall(json.dumps(told["job_configuration"]))) == set(told["variables"]["properties"])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_run_is_started_once_waited_for_as_long_as_a_node_takes_and_gone_after_a_day(name: str) -> None:
    told, job = template(name)["variables"]["properties"], job_of(name)["spec"]
    assert (job["backoffLimit"], job["completions"], pod_of(name)["restartPolicy"]) == (0, 1, "Never")
    assert told["backoff_limit"]["maximum"] == 1
    assert job["ttlSecondsAfterFinished"] == 86400
    assert told["pod_watch_timeout_seconds"]["default"] >= (AUTOSCALER_S if name == "gpu" else 300)
    assert pod_of(name)["terminationGracePeriodSeconds"] > 30  # Prefect's own grace, and ours below it


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_pod_of_a_run_is_nobody_and_holds_no_secret_of_its_own(name: str) -> None:
    pod = pod_of(name)
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True
    }  # fmt: skip
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert {"secretRef": {"name": "nightmill-clients"}} in container["envFrom"]
    assert not any(word in entry["name"] for entry in container["env"] for word in ("PASSWORD", "AUTH", "KEY", "TOKEN"))


def test_pod_of_pool_gpu_has_a_gpu_shared_memory_and_may_run_on_its_nodes() -> None:
    pod = pod_of("gpu")
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    (shared,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
    assert shared == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert pod["nodeSelector"] == {"nightmill/pool": "gpu"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert not any("nvidia.com/gpu" in json.dumps(part) for part in pod_of("cpu")["containers"])


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_what_a_run_goes_on_from_lies_on_the_shared_claim(name: str) -> None:
    """Outputs, locks and the checkpoints of an attempt are all below NIGHTMILL_HOME, so that the next pod finds them."""
    pod = pod_of(name)
    (container,) = pod["containers"]
    (claim,) = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    place = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == claim["name"])
    told = next(manifest for manifest in yaml.safe_load_all(NAMESPACE.read_text()) if manifest["kind"] == "ConfigMap")
    assert Path(told["data"]["NIGHTMILL_HOME"]).is_relative_to(place)
    assert {"configMapRef": {"name": told["metadata"]["name"]}} in container["envFrom"]


@pytest.fixture
def server(servers_home: Any, tmp_path: Path) -> Iterator[Any]:
    """A real server with pools of other names, so that those of `up` keep their workers."""
    _, servers = servers_home
    tree = yaml.safe_load(prefect_file().read_text())
    entry = next(entry for entry in tree["deployments"] if entry["name"] == "train-model")
    pools = {"gpu-kubernetes": {"type": "process", "concurrency_limit": 1, "description": "test"}}
    tree |= {
        "definitions": {"pools": pools},
        "deployments": [entry | {"name": "apart", "work_pool": {"name": "gpu-kubernetes"}}],
    }
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(tree))
    templates = tmp_path / "pools"
    templates.mkdir()
    shutil.copy(TEMPLATES / "gpu.json", templates / "gpu-kubernetes.json")
    with SyncPrefectClient(servers.api_url, auth_string=servers.auth) as client:

        def apply(folder: Path | None) -> dict[str, Any]:
            lines = apply_file(path, servers.api_url, servers.auth, folder)
            return {line.name: line for line in lines if line.kind == "pool"}

        yield apply, client, templates
        client.delete_deployment(client.read_deployment_by_name("train-model/apart").id)
        client.delete_work_pool("gpu-kubernetes")


def test_templates_make_kubernetes_pools_once_and_follow_their_files(server: Any) -> None:
    apply, client, templates = server
    assert apply(templates)["gpu-kubernetes"].state == "created"
    pool = client.read_work_pool("gpu-kubernetes")
    assert (pool.type, pool.concurrency_limit) == ("kubernetes", 1)
    assert pool.base_job_template == template("gpu")
    assert apply(templates)["gpu-kubernetes"].state == "unchanged"
    path = templates / "gpu-kubernetes.json"
    path.write_text(path.read_text().replace('"16Gi"', '"32Gi"'))
    line = apply(templates)["gpu-kubernetes"]
    assert (line.state, line.changed) == ("updated", ("base_job_template",))
    with pytest.raises(RequestError, match="of type kubernetes, wanted process: delete it there, or give --pools"):
        apply(None)


def test_template_that_is_missing_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="template of pool cpu cannot be read"):
        read_templates(tmp_path, ["cpu"])
    (tmp_path / "cpu.json").write_text("{}")
    with pytest.raises(RequestError, match="has variables and job_configuration"):
        read_templates(tmp_path, ["cpu"])
    assert read_templates(None, ["cpu"]) == {}
