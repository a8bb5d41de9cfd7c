"""The compose file and the Kubernetes manifests set what `nightmill up` sets, and accounts for MLflow besides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"


def compose(name: str) -> tuple[str, dict[str, str]]:
    service = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["services"][name]
    return " ".join(service["command"]), service["environment"]


def kubernetes(name: str) -> tuple[str, dict[str, str]]:
    (container,) = [c for c in containers(INFRA / "kubernetes" / f"{name}.yaml") if c["name"] == name]
    return " ".join(container["command"]) + " ".join(container.get("args", [])), {
        entry["name"]: entry.get("value", "from a Secret") for entry in container["env"]
    }


def containers(path: Path) -> Iterator[dict[str, Any]]:
    for document in yaml.safe_load_all(path.read_text()):
        pod = (document or {}).get("spec", {}).get("template", {}).get("spec", {})
        yield from pod.get("containers", [])


@pytest.mark.parametrize("place", [compose, kubernetes])
def test_mlflow_has_accounts_no_pickle_no_jobs_and_known_hosts_only(place):
    command, environment = place("mlflow")
    assert "--app-name" in command
    assert "basic-auth" in command
    assert "--allowed-hosts" in command
    assert "*" not in command
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE" not in environment


@pytest.mark.parametrize("place", [compose, kubernetes])
def test_prefect_has_a_password_csrf_tokens_and_origins(place):
    command, environment = place("prefect")
    assert "PREFECT_SERVER_API_AUTH_STRING" in f"{command}{list(environment)}"
    assert [value for name, value in environment.items() if name.endswith("CSRF_PROTECTION_ENABLED")] == ["true"]
    assert "*" not in environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]


def test_ports_of_the_compose_file_are_on_loopback():
    services = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_accounts_of_mlflow_see_nothing_until_they_are_let():
    assert "default_permission = NO_PERMISSIONS" in (INFRA / "compose" / "secrets.sh").read_text()


def test_no_password_stands_in_a_file():
    for path in sorted(INFRA.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            assert (document or {}).get("kind") != "Secret", f"{path}: make Secrets with kubectl, from files"
