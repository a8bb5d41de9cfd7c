"""Too many, too long, too late: what the limits of a server make of requests, through the whole application in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from training.serve.app import Surroundings, build_app
from training.serve.hub import Hub
from training.serve.measures import Measures
from training.serve.serve_spec import ServeSpec
from training.serve.served import identity_of_folder, load


def asked(folder: Path, *bodies: dict[str, Any], path: str = "/v1/completions", **limits: Any) -> list[httpx.Response]:
    """Answers to all bodies sent at once, and then of /health."""
    torch.set_num_threads(1)

    async def story() -> list[httpx.Response]:
        spec = ServeSpec.model_validate({"cache_tokens": 1024} | limits)
        served = load(folder, identity_of_folder(folder, "tiny"), spec)
        hub = Hub(served, spec.max_batch + spec.max_queue)
        app = build_app(hub, spec, Surroundings(), Measures(), None)
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        async with app.router.lifespan_context(app), client:
            common = {"model": "tiny", "temperature": 0} | ({"prompt": "rye"} if path == "/v1/completions" else {})
            given = [common | body for body in bodies]
            answers = await asyncio.gather(*(client.post(path, json=body) for body in given))
            return [*answers, await client.get("/health")]

    return asyncio.run(story())


def test_more_answers_than_places_are_503_and_told_when_to_come_back(tiny: Path) -> None:
    *answers, health = asked(tiny, *[{"max_tokens": 20}] * 5, max_batch=2, max_queue=1)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503, 503]
    full = next(answer for answer in answers if answer.status_code == 503)
    assert full.headers["retry-after"] == "1"
    assert full.json()["error"]["code"] == "overloaded"
    assert health.json()["running"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_answer_that_takes_too_long_is_given_up(tiny: Path, stream: bool) -> None:
    answer, health = asked(tiny, {"max_tokens": 150, "n": 8, "stream": stream}, timeout_s=0.05, max_tokens=150)
    if stream and answer.status_code == 200:  # it had begun: the end of the stream tells
        assert '"code": "timeout"' in answer.text
        assert "[DONE]" not in answer.text
    else:
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
    assert health.json()["running"] == 0


def test_prompt_longer_than_the_cache_is_refused_and_others_are_not_hurt(tiny: Path) -> None:
    """The engine would end with an error for all if it took a request that can never fit."""
    long, short, _ = asked(tiny, {"prompt": [5] * 150, "max_tokens": 40}, {"max_tokens": 4}, cache_tokens=256)
    assert long.json()["error"]["code"] == "context_length_exceeded"
    assert short.status_code == 200
    fits, _ = asked(tiny, {"prompt": [5] * 100, "max_tokens": 60, "n": 8}, cache_tokens=256, max_batch=8)
    assert fits.status_code == 200  # eight of 160 tokens do not fit at once: they take turns
    assert len({choice["text"] for choice in fits.json()["choices"]}) == 1


def test_chat_without_a_template_is_400_unless_the_server_has_one(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    conversation = {"messages": [{"role": "user", "content": "rye?"}], "max_tokens": 5}

    def chat(**limits: Any) -> httpx.Response:
        return asked(tmp_path, conversation, path="/v1/chat/completions", **limits)[0]

    answer = chat()
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_chat_template"
    assert chat(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}").status_code == 200
