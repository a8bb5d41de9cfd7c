"""What `nightmill serve` refuses before it starts anything, and the keys it makes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import yaml

from flows.cli import main
from flows.serve_command import check_exposure, is_loopback
from spark_jobs.errors import RequestError
from training.serve.keys import Keys

KUBERNETES = Path(__file__).parents[2] / "infra" / "kubernetes"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a preset"),
        (["demo", "--model", "."], "either a preset"),
        (["demo"], "no champion yet"),
        (["none-such"], "preset 'none-such'"),
        (["--model", "nowhere"], "config.json"),
        (["demo", "--set", "max_batch=0"], "max_batch"),
        (["demo", "--set", "max_bath=3"], "did you mean max_batch?"),
        (["demo", "--set", "max_tokens=4"], "default_max_tokens 16"),
        (["demo", "--keys", "nowhere.json"], "nightmill serve key"),
        (["key"], "wants a name"),
    ],
)
def test_wrong_request_ends_with_2_and_the_next_move(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.0.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.4", False), ("example.org", False)],
)  # fmt: skip
def test_only_loopback_is_served_without_keys(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    check_exposure(host, has_keys=True, no_keys=False)
    check_exposure(host, has_keys=False, no_keys=True)
    if loopback:
        check_exposure(host, has_keys=False, no_keys=False)
    else:
        with pytest.raises(RequestError, match="--keys FILE"):
            check_exposure(host, has_keys=False, no_keys=False)
    with pytest.raises(RequestError, match="contradict"):
        check_exposure(host, has_keys=True, no_keys=True)


def test_port_in_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(tmp_path), "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_folder_that_cannot_be_served_ends_with_the_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    assert main(["serve", "--model", str(tmp_path), "--port", port]) == 1
    assert "no replica came up" in capsys.readouterr().err


def test_key_is_printed_once_and_good(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "keys.json"
    assert main(["serve", "key", "team", "--keys", str(path), "--rate", "30", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = Keys(path).find(told["key"])
    assert found is not None
    assert (found.name, found.requests_per_minute) == ("team", 30)
    assert main(["serve", "key", "team", "--keys", str(path)]) == 2


def test_kubernetes_manifests_are_safe_and_scale_on_a_metric_that_exists() -> None:
    from training.serve.measures import Measures

    documents = list(yaml.safe_load_all((KUBERNETES / "serve.yaml").read_text()))
    kinds = {document["kind"]: document for document in documents}
    assert set(kinds) == {
        "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"
    }  # fmt: skip
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert "--keys" in container["args"]
    assert {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")} == {
        "/health/ready", "/health/live"
    }  # fmt: skip
    metric = kinds["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f"{metric} 0.0" in Measures().text().decode()
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for name in ("Service", "PodDisruptionBudget"):
        selector = kinds[name]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels
