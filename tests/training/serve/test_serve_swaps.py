"""A server that follows a champion: promotions, a rollback, a broken model, a late writer, a killed replica, an end."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from training.manifests import ModelFolder

PROMPTS = ("the mill grinds", "a night waits", "new flour.", "the café weighs rye", "old stones")
TOKENS = 8


@dataclass
class Pipeline:
    workspace: Path
    models: list[ModelFolder]
    greedy: list[Any]
    server: Any
    fence: int = 1

    def promote(self, number: int, serve: Any) -> None:
        self.fence += 1
        serve.point(self.workspace, self.models[number], number + 1, self.fence)

    def model(self) -> str:
        return str(self.server.health()["model"])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, world: Any, make: Any, serve: Any) -> Iterator[Pipeline]:
    home = tmp_path_factory.mktemp("swaps")
    workspace = home / "workspaces" / "demo"
    models, greedy = [], []
    for number in range(3):
        folder = workspace / "models" / f"export-{number:04d}"
        serve.write_model(folder / "data", Path(world.tokenizer.folder()), seed=10 + number)
        models.append(
            make.publish(
                ModelFolder,
                folder,
                "2026-01-01",
                1,
                scheme="dense",
                num_parameters=1,
                weight_bytes=1,
                effective_bits=32.0,
            )
        )
        greedy.append(serve.Greedy(folder / "data"))
    serve.point(workspace, models[0], 1, 1)
    settings = [
        word
        for one in ("poll_s=0.1", "retry_s=0.3", "flush_s=0.5", "watch_every=2", "max_tokens=150")
        for word in ("--set", one)
    ]
    server = serve.Running(home, "demo", "--replicas", "2", "--log", "-", *settings)
    yield Pipeline(workspace, models, greedy, server)
    server.stop()


def ask(url: str, prompt: str, stream: bool, **fields: Any) -> list[tuple[str, str, str]]:
    """(model, fingerprint, text) of each piece."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": stream} | fields
    with httpx.Client(trust_env=False, timeout=60) as client:
        if not stream:
            told = client.post(f"{url}/v1/completions", json=body).raise_for_status().json()
            return [(told["model"], told["system_fingerprint"], told["choices"][0]["text"])]
        with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    pieces = [json.loads(line) for line in lines[:-1]]
    return [(piece["model"], piece["system_fingerprint"], piece["choices"][0]["text"]) for piece in pieces]


def test_swap_under_load_loses_none_and_mixes_none(pipeline: Pipeline, serve: Any) -> None:
    """Each answer is wholly that of the version it names; promotions go up, up and back."""
    expected = {
        f"demo@{number + 1}": {prompt: one.text(prompt, TOKENS) for prompt in PROMPTS}
        for number, one in enumerate(pipeline.greedy)
    }
    prints = {f"demo@{number + 1}": f"fp_{model.digest[:16]}" for number, model in enumerate(pipeline.models)}
    over, failures, seen = threading.Event(), [], Counter[str]()

    def client(first: int) -> None:
        number = first
        while not over.is_set():
            prompt = PROMPTS[number % len(PROMPTS)]
            try:
                pieces = ask(pipeline.server.url, prompt, stream=number % 2 == 0)
                names = {piece[:2] for piece in pieces}
                (name, signed) = next(iter(names))
                text = "".join(piece[2] for piece in pieces)
                if len(names) != 1 or prints[name] != signed or text != expected[name][prompt]:
                    failures.append((names, prompt, text))
                seen[name] += 1
            except Exception as error:  # noqa: BLE001 told by the assertion below
                failures.append(error)
            number += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in (1, 2, 1, 0):
            before = seen[f"demo@{number + 1}"]
            pipeline.promote(number, serve)
            serve.wait_for(lambda: seen[f"demo@{number + 1}"] >= before + 10, 120)  # noqa: B023 waited for at once
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]
    assert set(seen) == {"demo@1", "demo@2", "demo@3"}


def test_whole_name_is_of_the_version_that_answers_now(pipeline: Pipeline, serve: Any) -> None:
    now = pipeline.model()
    assert ask(pipeline.server.url, "rye", False, model=now)[0][0] == now
    answer = httpx.post(
        f"{pipeline.server.url}/v1/completions", json={"model": "demo@77", "prompt": "rye"}, trust_env=False
    )
    assert answer.status_code == 404


def test_broken_champion_keeps_the_old_model_and_shows(pipeline: Pipeline, serve: Any) -> None:
    now, broken = pipeline.model(), pipeline.models[2]
    weights = Path(broken.folder()) / "model.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(right[:-4] + bytes(4))
    pipeline.promote(2, serve)
    serve.wait_for(lambda: pipeline.server.health()["status"] == "degraded")
    assert pipeline.server.health()["rejected"]["why"] == "DataError"
    assert pipeline.server.health()["rejected"]["version"] == "3"
    assert ask(pipeline.server.url, PROMPTS[0], False)[0][0] == now
    metrics = httpx.get(f"{pipeline.server.url}/metrics", trust_env=False).text
    assert "nightmill_champion_not_served 0.0" not in metrics
    weights.write_bytes(right)  # mended: it is tried again
    # Two replicas share the port: asked a few times, both have answered.
    serve.wait_for(lambda: all(pipeline.model() == "demo@3" for _ in range(6)))
    serve.wait_for(lambda: all(pipeline.server.health()["status"] == "ok" for _ in range(6)))


def test_late_writer_with_a_lower_fence_is_not_followed(pipeline: Pipeline, serve: Any) -> None:
    serve.wait_for(lambda: all(pipeline.model() == "demo@3" for _ in range(6)))
    serve.point(pipeline.workspace, pipeline.models[0], 1, pipeline.fence - 1)
    serve.wait_for(lambda: (pipeline.server.health()["rejected"] or {}).get("why") == "stale fence")
    assert pipeline.model() == "demo@3"
    pipeline.promote(1, serve)
    serve.wait_for(lambda: all(pipeline.model() == "demo@2" for _ in range(6)))


def test_killed_replica_is_started_again_while_the_other_answers(pipeline: Pipeline, serve: Any) -> None:
    supervisor = psutil.Process(pipeline.server.process.pid)
    before = {child.pid for child in supervisor.children()}
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    for _ in range(5):
        assert ask(pipeline.server.url, PROMPTS[1], False)[0][0] == "demo@2"
    serve.wait_for(lambda: len({child.pid for child in supervisor.children()} - before) == 1, 120)
    serve.wait_for(
        lambda: "nightmill_replicas 2.0" in httpx.get(f"{pipeline.server.url}/metrics", trust_env=False).text, 60
    )


def test_sigterm_lets_running_answers_end(pipeline: Pipeline, serve: Any) -> None:
    """Last of this file: the server is gone behind it. Counts of traffic were written, and hold no words."""
    body = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": 120, "temperature": 0, "stream": True}
    pieces: list[str] = []
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("POST", f"{pipeline.server.url}/v1/completions", json=body) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                if not pieces:
                    pipeline.server.process.send_signal(signal.SIGTERM)
                pieces.append(json.loads(line[6:])["choices"][0]["text"])
    assert pipeline.server.process.wait(60) == 0
    assert "".join(pieces) == pipeline.greedy[1].text(PROMPTS[0], 120)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(pipeline.server.port) in (p.info["cmdline"] or [])]
    lines = [json.loads(line) for path in (pipeline.workspace / "traffic").rglob("*.jsonl") for line in path.open()]
    assert {line["model"] for line in lines} == {model.address for model in pipeline.models}
    counted = sum(line["requests"] for line in lines)
    answered = sum(line["status"] == 200 for line in pipeline.server.lines())
    assert answered - 5 <= counted <= answered  # the killed replica may have had some that it had not written yet
    assert any(line["prompt_scored_tokens"] for line in lines)
    assert "mill" not in "".join(json.dumps(line) for line in lines).replace("models/", "")
