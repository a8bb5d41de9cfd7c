"""Second half of benchmarks/serve.py: requests without a pause while the champion changes five times, and goes back once.

Six versions of a model, each with answers of its own: copies whose weights were disturbed. What each answers greedily to each
prompt is known beforehand, from plain `generate` in this process; prompts where two tokens come closer than MARGIN at any place
of any version are left out, for there a sum in another order may choose the other. An answer is `mixed` if its text is not that
of the version it names, or if two pieces of one stream name different versions; `lost` if there is none.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoTokenizer

from spark_jobs.manifests import MANIFEST, FileEntry, file_sha256
from training.champion_pointer import POINTER, ChampionPointer
from training.manifests import ModelFolder
from training.model_folder import load_folder

VERSIONS, NOISE, MARGIN, TOKENS = 6, 0.03, 1e-3, 12
NIGHT = "2026-01-01"


@dataclass
class Counts:
    requests: int = 0
    lost: int = 0
    mixed: int = 0
    by_version: Counter[str] = field(default_factory=Counter)


def publish_versions(source: Path, workspace: Path) -> list[ModelFolder]:
    """Model folders with manifests, as the export step leaves them; the first is the model itself."""
    made = []
    for version in range(VERSIONS):
        folder = workspace / "models" / f"export-{version:016x}"
        shutil.copytree(source, folder / "data", copy_function=shutil.copyfile)
        if version:
            _disturb(folder / "data", version)
        files = tuple(
            FileEntry(path=str(path.relative_to(folder)), size_bytes=path.stat().st_size, sha256=file_sha256(path))
            for path in sorted((folder / "data").iterdir())
        )
        handle = ModelFolder(
            step="export", key=f"{version:016x}", night=NIGHT, format="safetensors", num_rows=1, files=files, spec={},
            code={}, libraries={}, scheme="dense", num_parameters=1, weight_bytes=1, effective_bits=32.0,
        )  # fmt: skip
        (folder / MANIFEST).write_text(handle.canonical())
        made.append(ModelFolder.load(folder))
    return made


def _disturb(data: Path, seed: int) -> None:
    model = load_folder(data)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += NOISE * weight.std() * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(data)


def point(workspace: Path, model: ModelFolder, version: int, fence: int) -> None:
    """What a promotion or a rollback leaves for servers to follow."""
    pointer = ChampionPointer(
        address=model.address, digest=model.digest, version=str(version), fence=fence, night=NIGHT
    )
    temporary = workspace / f".{POINTER}"
    temporary.write_text(pointer.model_dump_json())
    temporary.replace(workspace / POINTER)


def greedy_answers(models: list[ModelFolder], prompts: list[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Prompts whose answers are certain, and for each version the answer to each."""
    found: list[dict[str, tuple[str, float]]] = [_greedy(Path(model.folder()), prompts) for model in models]
    certain = [prompt for prompt in prompts if min(answers[prompt][1] for answers in found) > MARGIN]
    return certain, [{prompt: answers[prompt][0] for prompt in certain} for answers in found]


def _greedy(folder: Path, prompts: list[str]) -> dict[str, tuple[str, float]]:
    model, tokenizer = load_folder(folder), AutoTokenizer.from_pretrained(folder)
    bos, answers = model.config.bos_token_id, {}
    for prompt in prompts:
        ids = [bos, *tokenizer.encode(prompt, add_special_tokens=False)]
        output = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=TOKENS, do_sample=False,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        tops = torch.cat(output.scores).topk(2).values
        whole = tokenizer.decode(output.sequences[0], skip_special_tokens=True)
        before = tokenizer.decode(ids, skip_special_tokens=True)
        answers[prompt] = whole[len(before) :], float((tops[:, 0] - tops[:, 1]).min())
    return answers


async def ask_through_swaps(
    url: str, name: str, models: list[ModelFolder], prompts: list[str], expected: list[dict[str, str]], total: int,
    clients: int, promote: Callable[[int], None],
) -> Counts:  # fmt: skip
    """promote(i): the i-th change of the champion, at equal distances over the requests."""
    counts, every = Counts(), total // (VERSIONS + 1)
    known = {f"{name}@{version + 1}": answers for version, answers in enumerate(expected)}
    prints = {f"{name}@{version + 1}": f"fp_{model.digest[:16]}" for version, model in enumerate(models)}

    async def client(first: int, session: httpx.AsyncClient) -> None:
        while counts.requests < total:
            number, counts.requests = counts.requests, counts.requests + 1
            if number and number % every == 0 and number // every <= VERSIONS:
                await asyncio.to_thread(promote, number // every)
            prompt = prompts[number % len(prompts)]
            body = {"model": name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
            ask = _streamed if number % 3 == 0 else _whole
            try:
                said = await ask(session, url, body)
            except (httpx.HTTPError, ValueError, KeyError):
                counts.lost += 1
                continue
            if said is None:
                counts.lost += 1
            elif len(said) != 1 or next(iter(said))[:2] != _signed(said, prints):
                counts.mixed += 1
            else:
                ((model, _print), text) = next(iter(said.items()))
                counts.by_version[model] += 1
                counts.mixed += text != known[model][prompt]

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits, trust_env=False) as session:
        await asyncio.gather(*(client(number, session) for number in range(clients)))
    return counts


Said = dict[tuple[str, str], str]  # (model, fingerprint) -> text it said


def _signed(said: Said, prints: dict[str, str]) -> tuple[str, str]:
    model = next(iter(said))[0]
    return model, prints.get(model, "")


async def _whole(session: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Said | None:
    answer = await session.post(f"{url}/v1/completions", json=body)
    if answer.status_code != 200:
        return None
    told = answer.json()
    return {(told["model"], told["system_fingerprint"]): told["choices"][0]["text"]}


async def _streamed(session: httpx.AsyncClient, url: str, body: dict[str, Any]) -> Said | None:
    """None unless it came to its end."""
    said: Said = {}
    ended = False
    async with session.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}) as answer:
        if answer.status_code != 200:
            return None
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                told = json.loads(line[6:])
                who = told["model"], told["system_fingerprint"]
                said[who] = said.get(who, "") + told["choices"][0]["text"]
    return said if ended else None
