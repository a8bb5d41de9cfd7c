"""What the servers of `nightmill up` refuse: each row of the table in SECURITY.md that a running server answers."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import psutil
import pytest

from tasks.servers import basic_auth, client_environment, csrf_headers, server_environment, servers_folder

JSON = {"Content-Type": "application/json"}


def answer(
    url: str, headers: dict[str, str] | None = None, body: Any = None, method: str | None = None
) -> tuple[int, Any]:
    """Status, and headers of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return found.status, found.headers
    except urllib.error.HTTPError as err:
        return err.code, err.headers


@pytest.fixture
def mlflow(servers_home) -> str:
    return servers_home[1].mlflow_url


def test_servers_listen_on_loopback_alone(servers_home):
    _, servers = servers_home
    found = {}
    for started in servers.processes:
        for process in [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.port] = connection.laddr.ip
    assert {servers.prefect_port, servers.mlflow_port} <= set(found)
    assert set(found.values()) == {"127.0.0.1"}


def test_prefect_takes_a_write_only_with_password_and_csrf_token(servers_home):
    _, servers = servers_home
    url, logged_in = f"{servers.api_url}/flows/filter", JSON | basic_auth(servers.auth)
    token = csrf_headers(servers)
    assert answer(f"{servers.api_url}/csrf-token?client=stranger")[0] == 401
    assert answer(url, JSON | token, {})[0] == 401
    assert answer(url, logged_in, {})[0] == 403
    assert answer(url, logged_in | token | {"Prefect-Csrf-Token": "guessed"}, {})[0] == 403
    assert answer(url, logged_in | token, {})[0] == 200


def test_prefect_lets_only_its_own_pages_read_answers(servers_home):
    _, servers = servers_home
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    url = f"{servers.api_url}/flows/filter"
    foreign, _ = answer(url, asked | {"Origin": "http://evil.example"}, method="OPTIONS")
    own, headers = answer(url, asked | {"Origin": servers.prefect_url}, method="OPTIONS")
    assert foreign == 400
    assert (own, headers["Access-Control-Allow-Origin"]) == (200, servers.prefect_url)


def test_prefect_refuses_foreign_hosts(servers_home):
    """DNS rebinding, which neither a CSRF token nor CORS stops."""
    _, servers = servers_home
    assert answer(f"{servers.api_url}/health", basic_auth(servers.auth) | {"Host": "evil.example"})[0] == 400
    assert (
        answer(f"{servers.api_url}/health", {"Host": f"localhost:{servers.prefect_port}"} | basic_auth(servers.auth))[0]
        == 200
    )


def test_mlflow_refuses_foreign_hosts_and_writes_from_foreign_pages(mlflow):
    search = f"{mlflow}/api/2.0/mlflow/experiments/search"
    assert answer(search, JSON | {"Host": "evil.example"}, {"max_results": 1})[0] == 403
    assert answer(search, JSON | {"Origin": "http://evil.example"}, {"max_results": 1})[0] == 403
    assert answer(search, JSON, {"max_results": 1})[0] == 200


@pytest.mark.parametrize(
    "way",
    ["../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%252e%252e/etc/passwd", "/etc/passwd", "a/../../b"],
)
def test_mlflow_serves_no_file_from_outside_of_its_artifacts(mlflow, way):
    for path in (
        "api/2.0/mlflow-artifacts/artifacts/",
        "get-artifact?run_uuid=0&path=",
        "ajax-api/2.0/mlflow/upload-artifact?run_uuid=0&path=",
    ):
        status, _ = answer(f"{mlflow}/{path}{way}", body={} if "upload" in path else None)
        assert 400 <= status < 500, path


@pytest.mark.parametrize("source", ["file:///etc", "/etc", "mlflow-artifacts:/../../etc", "file://localhost/etc"])
def test_mlflow_registers_no_local_folder_as_a_model(mlflow, source):
    name = "model-from-elsewhere"
    answer(f"{mlflow}/api/2.0/mlflow/registered-models/create", JSON, {"name": name})
    status, _ = answer(f"{mlflow}/api/2.0/mlflow/model-versions/create", JSON, {"name": name, "source": source})
    assert status == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("api/2.0/mlflow/webhooks", {"name": "x", "url": "http://169.254.169.254/", "events": []}),
        ("ajax-api/2.0/mlflow/webhooks", {"name": "x", "url": "http://10.0.0.1/", "events": []}),
        ("ajax-api/2.0/mlflow/gateway-proxy", {"gateway_path": "http://10.0.0.1/", "request_type": "GET"}),
        ("gateway/mlflow/v1/chat/completions", {}),
        ("ajax-api/3.0/jobs", {"job_name": "x", "params": {}}),
        ("ajax-api/3.0/jobs/search", {}),
        ("ajax-api/3.0/mlflow/assistant/chat", {}),
        ("//ajax-api/3.0/jobs", {}),
    ],
)
def test_mlflow_calls_no_address_and_runs_no_job(mlflow, path, body):
    assert answer(f"{mlflow}/{path}", JSON, body)[0] == 403


@pytest.mark.parametrize("asked", ["config", "providers"])
def test_mlflow_says_that_there_is_no_assistant_and_takes_no_setting_of_one(mlflow, asked):
    """Each of its pages asks; a refusal would be shown as an error on all of them."""
    url = f"{mlflow}/ajax-api/3.0/mlflow/assistant/{asked}"
    with urllib.request.urlopen(url, timeout=20) as found:
        told = json.load(found)
    assert not told["providers"]
    assert not told.get("resolved")
    assert answer(url, JSON, {"providers": {"claude_code": {"selected": True}}}, method="PUT")[0] == 403


def test_mlflow_says_that_its_gateway_has_no_endpoint_and_calls_none(mlflow):
    url = f"{mlflow}/ajax-api/2.0/mlflow/gateway-proxy?gateway_path=http://169.254.169.254/"
    with urllib.request.urlopen(url, timeout=20) as found:
        assert json.load(found) == {"endpoints": []}


def test_mlflow_still_answers_what_is_used(mlflow):
    assert answer(f"{mlflow}/")[0] == 200
    assert answer(f"{mlflow}/api/2.0/mlflow/registered-models/search?max_results=1")[0] == 200


def test_workers_install_nothing(servers_home):
    _, servers = servers_home
    workers = [
        psutil.Process(process.pid).cmdline() for process in servers.processes if process.name.startswith("worker-")
    ]
    assert len(workers) == 2
    assert all(command[command.index("--install-policy") + 1] == "never" for command in workers)


def test_processes_are_told_the_safe_settings_where_the_defaults_are_not(servers_home):
    home, servers = servers_home
    told = {process.name: psutil.Process(process.pid).environ() for process in servers.processes}
    assert told["mlflow"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    for name in ("mlflow", "worker-cpu", "worker-gpu"):
        assert told[name]["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
        assert told[name]["MLFLOW_MODEL_CATALOG_URI"] == ""
    assert told["worker-cpu"]["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"
    for environment in told.values():
        assert "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE" not in environment
        assert "*" not in environment.get("MLFLOW_SERVER_ALLOWED_HOSTS", "")
        assert "PREFECT_API_KEY" not in environment  # it would win over the password, and be refused
    assert server_environment("prefect", home, True, 4200)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] != "*"
    assert "PREFECT_API_KEY" not in client_environment(home)
    assert not list(servers_folder(home).glob("*.pkl"))
