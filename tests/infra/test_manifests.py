"""Files of infra/ against the published schemas, and against one another. Nothing here starts a container: there is no Docker."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))
IMAGES = ("base", "spark", "train-gpu")
# What the operator makes by hand, see docs/operating.md.
SECRETS = {"nightmill-postgres", "nightmill-databases", "nightmill-mlflow", "nightmill-clients"}
SERVE = {"nightmill-serve-keys", "nightmill-vllm-key"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [tree for tree in yaml.safe_load_all(path.read_text()) if tree]


def everything() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, tree) for path in MANIFESTS for tree in documents(path)]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for file, tree in everything():
        spec = tree.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec and "spec" in spec["template"]:
            yield f"{file} {tree['metadata']['name']}", spec["template"]["spec"]


def found(tree: Any, key: str) -> Iterator[Any]:
    """Values of a key anywhere below."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from found(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from found(value, key)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
@pytest.mark.parametrize("release", ["1.31", "1.34"])
def test_manifest_is_what_kubernetes_publishes(path: Path, release: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for tree in documents(path):
        kubernetes_validate.validate(tree, release, strict=True)


def test_schemas_refuse_a_manifest_with_a_key_that_does_not_exist() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    wrong = documents(INFRA / "kubernetes" / "prefect.yaml")[-1]
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.34", strict=True)


def test_pods_are_nobody_keep_nothing_and_say_what_they_need() -> None:
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
            assert not container["image"].endswith(":latest"), name
            assert ":" in container["image"], name


def test_no_pod_but_workers_and_spark_drivers_may_ask_the_api_server() -> None:
    for name, pod in pods():
        if pod.get("serviceAccountName") != "nightmill-worker":
            assert pod.get("automountServiceAccountToken") is False, name
    accounts = {tree["metadata"]["name"]: tree for _, tree in everything() if tree["kind"] == "ServiceAccount"}
    assert accounts["nightmill-run"]["automountServiceAccountToken"] is False
    for _, tree in everything():
        assert tree["kind"] not in ("ClusterRole", "ClusterRoleBinding")
        for rule in tree.get("rules", []):
            assert "*" not in [*rule["verbs"], *rule["resources"]]


def test_whatever_a_manifest_names_exists() -> None:
    there = {(tree["kind"], tree["metadata"]["name"]) for _, tree in everything()}
    templates = [json.loads(path.read_text()) for path in sorted((INFRA / "pools").glob("*.json"))]
    for tree in [tree for _, tree in everything()] + templates:
        for key, kind in (("configMapRef", "ConfigMap"), ("configMap", "ConfigMap")):
            for reference in found(tree, key):
                assert (kind, reference["name"]) in there, reference
        for key, field in (("secretKeyRef", "name"), ("secretRef", "name"), ("secret", "secretName")):
            assert {reference[field] for reference in found(tree, key)} <= SECRETS | SERVE
        for claim in found(tree, "claimName"):
            assert claim in ("nightmill-home", "{{ home_claim }}")
        for account in found(tree, "serviceAccountName"):
            assert ("ServiceAccount", account) in there or account == "{{ service_account_name }}"


def test_services_find_pods_and_addresses_find_services() -> None:
    labels = [
        tree["spec"].get("jobTemplate", tree).get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
        for _, tree in everything()
        if tree["kind"] in ("Deployment", "StatefulSet", "CronJob")
    ]
    gpu = json.loads((INFRA / "pools" / "gpu.json").read_text())["job_configuration"]["job_manifest"]
    labels.append(gpu["spec"]["template"]["metadata"]["labels"])
    services = {tree["metadata"]["name"]: tree["spec"] for _, tree in everything() if tree["kind"] == "Service"}
    for name, service in services.items():
        assert any(service["selector"].items() <= label.items() for label in labels), name
    (told,) = [tree["data"] for _, tree in everything() if tree["metadata"]["name"] == "nightmill" and "data" in tree]
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "NIGHTMILL_RENDEZVOUS", "NIGHTMILL_DASK_ADDRESS"):
        host, port = re.search(r"([a-z-]+):(\d+)", told[variable].split("//")[-1]).groups()  # type: ignore[union-attr]
        assert int(port) in [entry["port"] for entry in services[host]["ports"]], variable


def test_nothing_enters_the_namespace_unless_a_policy_says_so() -> None:
    policies = {t["metadata"]["name"]: t["spec"] for f, t in everything() if f == "network-policy.yaml"}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, policy in policies.items():
        for rule in policy.get("ingress", []):
            assert rule["from"], name


def compose() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
    return {key: value for key, value in tree.items() if not key.startswith("x-")}


def test_compose_files_are_what_the_specification_says() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    read = compose_spec.PyCompose.from_json
    for path in sorted((INFRA / "compose").glob("compose*.yaml")):
        tree = yaml.safe_load(path.read_text())
        read(json.dumps({key: value for key, value in tree.items() if not key.startswith("x-")})).to_spec()
    wrong = copy.deepcopy(compose())
    wrong["services"]["mlflow"]["helthcheck"] = {}
    with pytest.raises(ValueError, match="helthcheck"):
        read(json.dumps(wrong))


def test_compose_listens_on_loopback_alone_and_watches_every_service() -> None:
    tree = compose()
    for name, service in tree["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "healthcheck" in service or name == "deploy", name
        assert not service["image"].endswith(":latest"), name
    assert tree["networks"]["inside"] == {"internal": True}
    assert [name for name, service in tree["services"].items() if "outside" in service["networks"]] == [
        "prefect",
        "mlflow",
    ]


def test_compose_keeps_secrets_in_files_that_its_script_makes(tmp_path: Path) -> None:
    tree = compose()
    subprocess.run([INFRA / "compose" / "secrets.sh", str(tmp_path / "made")], check=True, stdout=subprocess.DEVNULL)
    made = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert set(made) == {Path(entry["file"]).name for entry in tree["secrets"].values()}
    assert {name for service in tree["services"].values() for name in service.get("secrets", [])} == set(
        tree["secrets"]
    )
    assert made["postgres_password"] in made["prefect_database"]
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0
    subprocess.run([INFRA / "compose" / "secrets.sh", str(tmp_path / "made")], check=True, stdout=subprocess.DEVNULL)
    assert {path.name: path.read_text() for path in (tmp_path / "made").iterdir()} == made
    for service in tree["services"].values():
        for variable in service.get("environment", {}):
            assert not re.search("PASSWORD$|SECRET|AUTH_STRING|TOKEN|CONNECTION_URL", variable), variable


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_of_an_image_is_pinned_as_here_and_has_its_hash(image: str) -> None:
    text = (INFRA / "images" / f"requirements-{image}.txt").read_text()
    packages = re.split(r"\n(?=\S)", text.strip())
    pinned = {}
    for package in packages:
        name, version = re.match(r"([\w.-]+)(?:\[.*?\])?==(\S+)", package).groups()  # type: ignore[union-attr]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", package), name
        pinned[name.lower()] = version
    constraints = dict(
        line.split("==")
        for line in (INFRA.parent / "constraints.txt").read_text().lower().splitlines()
        if re.fullmatch(r"[\w.-]+==\S+", line)
    )
    assert {name: v for name, v in pinned.items() if constraints.get(name, v) != v} == {}
    assert {"prefect", "mlflow", "psycopg", "asyncpg", "prefect-kubernetes", "flask-wtf"} <= pinned.keys()
    assert ("torch" in pinned) == (image != "base")
    assert ("pyspark" in pinned) == (image == "spark")


def test_images_run_as_nobody_and_get_nothing_they_do_not_copy() -> None:
    text = (INFRA / "images" / "Dockerfile").read_text()
    stages = {part.split("\n")[0].split(" AS ")[1]: part for part in text.split("\nFROM ")[1:]}
    assert set(IMAGES) <= set(stages)
    for image in IMAGES:
        assert "USER 10001:10001" in stages[image]
        assert "--require-hashes" in stages[f"build-{image}"]
        assert "pip install --no-deps ." in stages[f"build-{image}"]
    ignored = (INFRA / "images" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignored if not line.startswith("#")]
    assert rules[0] == "*"
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text, re.MULTILINE):
        for word in source.split():
            assert (INFRA.parent / word).exists(), word
            assert f"!{word}" in rules, word


def test_shell_scripts_of_infra_are_well_formed() -> None:
    for path in INFRA.rglob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert path.stat().st_mode & 0o100, path
