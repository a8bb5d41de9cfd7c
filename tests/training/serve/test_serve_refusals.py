"""What a server does with requests it should not answer, and what it writes down of them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

BODY = {"model": "tiny", "prompt": "the secret of the mill", "max_tokens": 3}


def post(guarded: Any, key: str | None = None, path: str = "/v1/completions", **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {guarded.key if key is None else key}"} if key != "" else {}
    return httpx.post(
        guarded.server.url + path, headers=headers | options.pop("headers", {}), trust_env=False, **options
    )


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """One error object of OpenAI's shape, one line of words."""
    assert answer.status_code == status
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return error


def test_without_a_key_or_with_a_wrong_one_is_401(guarded: Any) -> None:
    assert refused(post(guarded, "", json=BODY), 401)["code"] == "invalid_api_key"
    for wrong in ("nm-wrong", guarded.key[:-1], guarded.key + "x"):
        answer = post(guarded, wrong, json=BODY)
        assert refused(answer, 401)["code"] == "invalid_api_key"
        assert wrong not in answer.text
    for header in (b"Basic eA==", b"Bearer", b"Bearer \xc3\xbc", b"bearer a b", b""):
        assert refused(post(guarded, "", headers={"Authorization": header}, json=BODY), 401)
    assert httpx.get(f"{guarded.server.url}/v1/models", trust_env=False).status_code == 401


def test_health_and_metrics_need_no_key_and_name_no_one(guarded: Any) -> None:
    assert post(guarded, json=BODY).status_code == 200
    for path in ("/health", "/health/live", "/health/ready"):
        assert httpx.get(guarded.server.url + path, trust_env=False).status_code == 200
    text = httpx.get(f"{guarded.server.url}/metrics", trust_env=False).text
    assert 'nightmill_requests_total{route="/v1/completions",status="200"}' in text
    assert 'nightmill_model_info{fingerprint="fp_' in text
    assert "nightmill_replicas 1.0" in text
    assert "team" not in text


def test_body_that_is_too_large_is_413_said_or_unsaid(guarded: Any) -> None:
    large = BODY | {"prompt": "x" * 30_000}
    assert refused(post(guarded, json=large), 413)["code"] == "request_too_large"

    def pieces() -> Any:
        yield b'{"model": "tiny", "prompt": "'
        for _ in range(30):
            yield b"x" * 1000
        yield b'"}'

    answer = post(guarded, content=pieces(), headers={"Content-Type": "application/json"})
    assert refused(answer, 413)["code"] == "request_too_large"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe\x00", b'{"model": 3}', b'{"model": "tiny"}',
        b'{"model": "tiny", "prompt": []}', b'{"model": "tiny", "prompt": ["a", 1]}', b'{"model": "tiny", "prompt": [[]]}',
        b'{"model": "tiny", "prompt": "a", "temperature": NaN}', b'{"model": "tiny", "prompt": "a", "stream": "yes"}',
        b'{"model": "tiny", "prompt": "a", "stop": ["a","b","c","d","e"]}', b"[" * 5000,
        b'{"model": "tiny", "prompt": [99999999999999999999999]}', b'{"model": "tiny", "prompt": "a", "seed": 1e400}',
    ],
)  # fmt: skip
def test_malformed_body_is_400_with_one_message(guarded: Any, content: bytes) -> None:
    assert refused(post(guarded, content=content, headers={"Content-Type": "application/json"}), 400)


def test_lone_surrogate_in_a_prompt_is_400(guarded: Any) -> None:
    body = b'{"model": "tiny", "prompt": "a \\ud800 b", "max_tokens": 2}'
    assert (
        "surrogate"
        in refused(post(guarded, content=body, headers={"Content-Type": "application/json"}), 400)["message"]
    )


@pytest.mark.parametrize(
    "name", ["../tiny", "/etc/passwd", "tiny/../tiny", "..", "./tiny", "tiny@1", "tiny\x00", "C:\\tiny"]
)
def test_path_as_model_name_is_404_and_opens_nothing(guarded: Any, name: str) -> None:
    error = refused(post(guarded, json=BODY | {"model": name}), 404)
    assert error["code"] == "model_not_found"
    assert name not in error["message"]
    place = quote(name, safe="").replace(".", "%2E")
    headers = {"Authorization": f"Bearer {guarded.key}"}
    answer = httpx.get(f"{guarded.server.url}/v1/models/{place}", headers=headers, trust_env=False)
    assert answer.status_code == 404


def test_unknown_route_and_method_have_the_same_shape(guarded: Any) -> None:
    refused(post(guarded, path="/v1/nothing", json=BODY), 404)
    refused(post(guarded, path="/v1/models", json=BODY), 405)


def test_key_over_its_rate_is_429_with_the_time_to_wait(guarded: Any) -> None:
    assert [post(guarded, guarded.slow, json=BODY).status_code for _ in range(2)] == [200, 200]
    answer = post(guarded, guarded.slow, json=BODY)
    assert refused(answer, 429)["code"] == "rate_limit_exceeded"
    assert 1 <= int(answer.headers["retry-after"]) <= 31
    assert post(guarded, json=BODY).status_code == 200


def test_log_tells_who_what_and_how_long_and_no_words(guarded: Any) -> None:
    answer = post(guarded, json=BODY | {"user": "jane@example.org", "stop": "zzz"})
    post(guarded, "nm-not-a-key", path="/v1/jane-was-here", json=BODY)
    text = guarded.server.log.read_text()
    for word in (
        "secret",
        "jane",
        "nm-",
        guarded.key,
        guarded.key[3:],
        "127.0.0.1",
        answer.json()["choices"][0]["text"].strip(),
    ):
        assert not word or word not in text
    line = next(line for line in guarded.server.lines() if line["id"] == answer.headers["x-request-id"])
    assert line["key"] == "team"
    assert line["route"] == "/v1/completions"
    assert line["model"] == "tiny"
    assert line["answer_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert line["status"] == 200
    assert line["ms"] > 0
    assert set(line) == {
        "at", "id", "key", "route", "model", "prompt_tokens", "answer_tokens", "first_token_ms", "ms", "status",
    }  # fmt: skip
    assert guarded.key not in guarded.server.output.read_text()
    assert "secret" not in guarded.server.output.read_text()


def test_hanging_up_frees_the_place(guarded: Any, serve: Any) -> None:
    body = BODY | {"max_tokens": 100, "n": 8, "stream": True}
    headers = {"Authorization": f"Bearer {guarded.key}"}
    with httpx.stream(
        "POST", f"{guarded.server.url}/v1/completions", json=body, headers=headers, trust_env=False
    ) as answer:
        next(answer.iter_lines())
    name = answer.headers["x-request-id"]
    serve.wait_for(lambda: any(line["id"] == name for line in guarded.server.lines()))
    line = next(line for line in guarded.server.lines() if line["id"] == name)
    assert line["answer_tokens"] < 800
    assert line["status"] == 499
    with pytest.raises(httpx.ReadTimeout):
        post(guarded, json=body | {"stream": False}, timeout=0.02)
    serve.wait_for(lambda: sum(line["status"] == 499 for line in guarded.server.lines()) == 2)
    serve.wait_for(lambda: guarded.server.health()["running"] == 0)


def test_schemathesis_finds_no_answer_of_500_or_above(guarded: Any) -> None:
    schema = schemathesis.openapi.from_url(f"{guarded.server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:
        ask_all(guarded, operation)


def ask_all(guarded: Any, operation: Any) -> None:
    @given(case=operation.as_strategy())
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "tiny"  # or every request would end at the name
        answer = case.call(headers={"Authorization": f"Bearer {guarded.key}"})
        assert answer.status_code < 500, (operation.label, json.dumps(case.body, default=str)[:2000])

    ask()
