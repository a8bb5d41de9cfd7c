"""Answers that a model gave before, so that none is asked for twice: the champion's of last night, those of a killed run.

A key of everything that decides an answer names a folder: weights and configuration, tokenizer, how texts begin, numeric
type, libraries. In it, each line of each file is one request by its hash and the answer. A process writes only files of
its own and moves each to its name when it is whole, so any number of them share a folder, and a killed one leaves
nothing behind that is read. Answers with no finite value are not kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spark_jobs.manifests import file_sha256
from training.benchmarks.requests import Answer, Likelihood, Request, Written

KEPT_AT_ONCE = 256  # answers of a file: what a killed run may lose
WEIGHTS = ("*.safetensors", "*.gguf", "config.json", "generation_config.json")
TOKENIZER = ("tokenizer.json",)
LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class ModelKey:
    """weights, tokenizer: digests of names and bytes. backend: what computes."""

    weights: str
    tokenizer: str
    beginning: str
    dtype: str
    backend: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


def model_key(folder: Path, beginning: str, dtype: str) -> ModelKey:
    backend = " ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES) + f" {platform.machine()}"
    return ModelKey(_digest(folder, WEIGHTS), _digest(folder, TOKENIZER), beginning, dtype, backend)


def request_key(request: Request) -> str:
    told = json.dumps([type(request).__name__, asdict(request)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


@dataclass
class AnswerCache:
    """Answers of one model under `root`. found, asked: how many of the requests so far were known, and were not."""

    root: Path
    key: ModelKey
    found: int = 0
    asked: int = 0
    _known: dict[str, Answer] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        return self.root / self.key.digest

    def answer(self, requests: Sequence[Request], ask: Callable[[Sequence[Request]], Sequence[Answer]]) -> list[Answer]:
        """In the order of `requests`; `ask` is given those that are not known, some hundreds at a time, each once."""
        known = self._read()
        keys = {request: request_key(request) for request in dict.fromkeys(requests)}
        unknown = [request for request, key in keys.items() if key not in known]
        self.found, self.asked = self.found + len(keys) - len(unknown), self.asked + len(unknown)
        for first in range(0, len(unknown), KEPT_AT_ONCE):
            part = unknown[first : first + KEPT_AT_ONCE]
            answers = dict(zip((keys[request] for request in part), ask(part), strict=True))
            known |= answers
            self._write(answers)
        return [known[keys[request]] for request in requests]

    def _read(self) -> dict[str, Answer]:
        if self._known is None:
            self._known = {key: answer for path in sorted(self.folder.glob("*.jsonl")) for key, answer in _lines(path)}
        return self._known

    def _write(self, answers: dict[str, Answer]) -> None:
        lines = [
            json.dumps([key, _told(answer)], ensure_ascii=False) for key, answer in answers.items() if answer.finite
        ]
        if not lines:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(lines) + "\n"
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        temporary = self.folder / f".{name}.{os.getpid()}"
        temporary.write_text(text)
        temporary.replace(self.folder / f"{name}.jsonl")


def _told(answer: Answer) -> dict[str, Any]:
    return {"kind": type(answer).__name__} | asdict(answer)


def _lines(path: Path) -> Iterator[tuple[str, Answer]]:
    for line in path.read_text().splitlines():
        key, told = json.loads(line)
        kind = Likelihood if told.pop("kind") == "Likelihood" else Written
        yield key, kind(**told | {"flags": tuple(told["flags"])})


def _digest(folder: Path, patterns: Sequence[str]) -> str:
    """Of names and bytes of the files that match, also in folders below (an adapter lies in one)."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.rglob(pattern)}):
        digest.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
