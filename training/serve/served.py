"""One model, loaded and checked, with the engine that writes its answers, and its name in every answer."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoTokenizer

from spark_jobs.errors import DataError
from spark_jobs.manifests import Frozen, file_sha256
from training.export import probe_logits
from training.manifests import ModelFolder
from training.model_folder import load_folder
from training.serve.batching import Batching, can_batch
from training.serve.generation import Engine
from training.serve.heads import Kind, classify, embed, kind_of
from training.serve.own_thread import in_own_thread
from training.serve.sampling import Sampling
from training.serve.serial import Serial
from training.serve.serve_spec import ServeSpec
from training.serve.threads import settle_threads

T = TypeVar("T")
SMOKE_TOKENS = 4  # written by a new model before anybody is sent to it
SMOKE_TOLERANCE = 0.1  # logits: a sum in another order is far less, another token mostly far more


class Identity(Frozen):
    """What a model is called. name: what a request may ask for, whichever version answers; address and digest: of the model
    folder, or sha256 over the files of a folder that has no manifest. fence: number of the promotion."""

    name: str
    version: str = ""
    address: str
    digest: str
    fence: int = 0

    @property
    def model(self) -> str:
        """As told in answers."""
        return f"{self.name}@{self.version}" if self.version else self.name

    @property
    def fingerprint(self) -> str:
        return f"fp_{self.digest[:16]}"


class Served:
    """A model that answers. `users` requests are on it; it is closed once there are none and none can come."""

    def __init__(self, identity: Identity, model: Any, tokenizer: Any, spec: ServeSpec) -> None:
        self.identity, self.model, self.tokenizer, self.spec = identity, model, tokenizer, spec
        self.kind: Kind = kind_of(model)
        self.users = 0
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._anchor: list[int] = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._token_texts: dict[int, str] = {}
        self._bos: int | None = model.config.bos_token_id
        self.end_tokens = _end_tokens(model)
        self.engine: Engine | None = None
        if self.kind == "generation":
            self.engine = (Batching if can_batch(model) else Serial)(model, self.end_tokens, spec)

    @property
    def capacity(self) -> int:
        """Tokens of one request, prompt and answer together, at most."""
        if self.engine is not None:
            return self.engine.capacity
        return int(getattr(self.model.config, "max_position_embeddings", self.spec.cache_tokens))

    @property
    def chat_template(self) -> str:
        return self.tokenizer.chat_template or self.spec.chat_template

    def encode(self, text: str) -> list[int]:
        """As every step of Nightmill encodes a text for a model that writes: the start token, once, where the model has one.

        Models with a head read a text as their tokenizer makes it, as they were trained.
        """
        if self.kind != "generation" or self.model.config.is_encoder_decoder:
            whole: list[int] = self.tokenizer.encode(text)
            return whole
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens if self._bos is None or self.begins(tokens) else [self._bos, *tokens]

    def begins(self, tokens: list[int]) -> bool:
        """Whether the first token is the model's start token."""
        return self._bos is not None and tokens[:1] == [self._bos]

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Raises: whatever the template raises for messages it does not take."""
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, add_generation_prompt=True, tokenize=False
        )
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def token_text(self, token: int) -> str:
        """A token as it reads inside a text: decoded behind another, as some tokenizers drop the first space."""
        known = self._token_texts.get(token)
        if known is None:
            decode = self.tokenizer.decode
            known = decode([*self._anchor, token])[len(decode(self._anchor)) :]
            self._token_texts[token] = known
        return known

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run work on the model beside the engine, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(
            self._aside, in_own_thread, partial(work, self.model, *arguments)
        )

    async def smoke(self) -> None:
        """Raises: DataError if the engine writes nothing, or something else than a forward pass finds likeliest."""
        if self.engine is None:
            return
        prompt = self.encode("The") or [0]
        generation = self.engine.start(prompt, Sampling(), SMOKE_TOKENS, every_token=False)
        async with asyncio.timeout(self.spec.timeout_s):
            new = [token async for step in generation.steps() for token in step]
        if not new:
            raise DataError(f"model {self.identity.address} writes nothing; keep the one that answers")
        if self.model.config.is_encoder_decoder:
            return
        behind = await self.aside(_behind_the_likeliest, prompt, new[0])
        if behind > SMOKE_TOLERANCE:
            raise DataError(
                f"model {self.identity.address} writes a token whose logit is {behind:.3g} below the likeliest: its adapter, or its "
                "weights, are left out when it writes; keep the one that answers"
            )

    def close(self) -> None:
        """Blocks until the engine is gone."""
        if self.engine is not None:
            self.engine.close()
        self._aside.shutdown(wait=True, cancel_futures=True)
        self.engine = self.model = self.tokenizer = None


def load_champion(root: Path, identity: Identity, spec: ServeSpec) -> Served:
    """root: the workspace. Raises: DataError if a byte differs from the manifest, or the manifest from `identity`."""
    handle = ModelFolder.load(root / identity.address)
    if handle.digest != identity.digest:
        raise DataError(
            f"model {identity.address} has digest {handle.digest[:12]}, promoted was {identity.digest[:12]}"
        )
    handle.check_bytes()
    return load(Path(handle.folder()), identity, spec)


def load(folder: Path, identity: Identity, spec: ServeSpec) -> Served:
    """Raises: DataError for a format or a head that cannot be served, or answers that are not finite."""
    model = load_folder(folder)
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not getattr(tokenizer, "backend_tokenizer", None):
        raise DataError(f"{folder} has no tokenizer.json; save its tokenizer as a fast one")
    _check_finite(model, folder)
    if spec.threads:
        settle_threads(model, spec.threads)
    return Served(identity, model, tokenizer, spec)


def identity_of_folder(folder: Path, name: str) -> Identity:
    """Of any Hugging Face folder. Raises: DataError if it holds no model."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} has no config.json; wanted a model folder of Hugging Face's layout")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = "".join(f"{path.relative_to(folder)}\0{file_sha256(path)}\n" for path in files)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return Identity(name=name or safe_name(folder.name), address=folder.name, digest=digest)


def safe_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"


def _check_finite(model: Any, folder: Path) -> None:
    kind = kind_of(model)
    if kind == "unknown":
        raise DataError(f"{folder} holds a {type(model).__name__}; served are models that write, classify or embed")
    if kind == "classification":
        found = classify(model, [0, 1])
        numbers = torch.tensor(found.get("probs", [found.get("value")]))
    elif kind == "embedding":
        numbers = torch.tensor(embed(model, [0, 1]))
    else:
        numbers = probe_logits(model)
    if not torch.isfinite(numbers).all():
        raise DataError(f"{folder}: answers that are not finite; export or compress the model again")


def _behind_the_likeliest(model: Any, prompt: list[int], token: int) -> float:
    """Logits between the likeliest token behind `prompt`, of a plain forward pass, and `token`."""
    with torch.inference_mode():
        logits_V = model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
    return float(logits_V.max() - logits_V[token])


def _end_tokens(model: Any) -> tuple[int, ...]:
    found = getattr(model.generation_config, "eos_token_id", None) if model.can_generate() else None
    if found is None:
        found = model.config.eos_token_id
    return () if found is None else tuple(found) if isinstance(found, list) else (int(found),)
