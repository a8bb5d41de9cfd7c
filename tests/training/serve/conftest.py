"""A tiny model whose greedy answers are far from ties, and servers of it as real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from training.champion_pointer import POINTER, ChampionPointer
from training.manifests import ModelFolder

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system first') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
CONTEXT = 160
START_S = 300  # on a machine that is busy with ten other things


def write_model(folder: Path, tokenizer: Path, seed: int, template: str = TEMPLATE) -> Path:
    """Weights far larger than a fresh model's: its likeliest tokens stand out by more than sums in another order differ."""
    folder.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(tokenizer)), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, tie_word_embeddings=False, initializer_range=0.4,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, world: Any) -> Path:
    return write_model(tmp_path_factory.mktemp("serve") / "tiny", Path(world.tokenizer.folder()), 1)


@dataclass
class Greedy:
    """What a folder's model writes greedily, by plain `generate`."""

    folder: Path

    def __post_init__(self) -> None:
        self.model = LlamaForCausalLM.from_pretrained(self.folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def ids(self, prompt: str) -> list[int]:
        return [1, *self.tokenizer.encode(prompt, add_special_tokens=False)]

    def continued(self, ids: list[int], max_tokens: int) -> list[int]:
        tokens = torch.tensor([ids])
        output = self.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=max_tokens, do_sample=False, eos_token_id=2
        )
        return output[0, len(ids) :].tolist()

    def text(self, prompt: str, max_tokens: int) -> str:
        return self.after(self.ids(prompt), max_tokens)

    def after(self, ids: list[int], max_tokens: int) -> str:
        whole = self.tokenizer.decode([*ids, *self.continued(ids, max_tokens)], skip_special_tokens=True)
        return whole[len(self.tokenizer.decode(ids, skip_special_tokens=True)) :]

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """(T, V): row t is of what follows token t."""
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.fixture(scope="session")
def greedy(tiny: Path) -> Greedy:
    return Greedy(tiny)


class Running:
    """`nightmill serve` with these arguments; ready when made."""

    def __init__(self, home: Path, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url, self.log, self.home = f"http://127.0.0.1:{self.port}", home / "requests.jsonl", home
        home.mkdir(parents=True, exist_ok=True)
        argv = [
            sys.executable,
            "-m",
            "flows.cli",
            "serve",
            "--port",
            str(self.port),
            "--log",
            str(self.log),
            *arguments,
        ]
        self.output = home / "output.log"
        self.process = subprocess.Popen(
            argv, env=os.environ | {"NIGHTMILL_HOME": str(home), "NIGHTMILL_THREADS": "1"}, stdout=self.log.open("a"),
            stderr=self.output.open("w"),
        )  # fmt: skip
        try:
            wait_for(lambda: self.health() is not None or self.process.poll() is not None, START_S)
            assert self.process.poll() is None, self.output.read_text()
        except BaseException:
            self.stop()
            raise

    def health(self) -> dict[str, Any] | None:
        try:
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).json()
        except httpx.HTTPError:
            return None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def serve(tiny: Path) -> SimpleNamespace:
    """Tools for tests that start servers of their own."""
    return SimpleNamespace(Running=Running, wait_for=wait_for, write_model=write_model, Greedy=Greedy, point=point)


@dataclass(frozen=True)
class Guarded:
    """A server that asks for keys; `key` is good, `slow` may ask twice a minute."""

    server: Running
    key: str
    slow: str


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Guarded]:
    home = tmp_path_factory.mktemp("guarded")
    keys = home / "keys.json"
    made = [_make_key(home, keys, *arguments) for arguments in (("team",), ("slow", "--rate", "2"))]
    running = Running(
        home, "--model", str(tiny), "--keys", str(keys), "--set", "max_tokens=100", "--set", "max_body_bytes=20000"
    )
    yield Guarded(running, *made)
    running.stop()


def _make_key(home: Path, keys: Path, name: str, *more: str) -> str:
    argv = [sys.executable, "-m", "flows.cli", "serve", "key", name, "--keys", str(keys), "--json", *more]
    told = subprocess.run(
        argv, env=os.environ | {"NIGHTMILL_HOME": str(home)}, capture_output=True, text=True, check=True
    )
    return str(json.loads(told.stdout)["key"])


def point(workspace: Path, model: ModelFolder, version: int, fence: int) -> None:
    pointer = ChampionPointer(
        address=model.address, digest=model.digest, version=str(version), fence=fence, night="2026-01-01"
    )
    (workspace / ".pointer").write_text(pointer.model_dump_json())
    (workspace / ".pointer").replace(workspace / POINTER)
