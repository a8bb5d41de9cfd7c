"""A teacher behind an endpoint as OpenAI's: asked once for each text, before training, and kept on disk.

POST {NIGHTMILL_TEACHER_URL}/completions with the text's token ids as prompt, echo and logprobs, and nothing to write: the answer
holds the likeliest tokens at every place of the prompt. vLLM and llama.cpp's server answer so. Tokens are named by their text,
or as token_id:17 (vLLM's --return-tokens-as-token-ids, which no two tokens share). A name that is no token's, or that of several,
goes to the bucket of all others.

The address and the key are of this machine and never part of a spec. Which model the endpoint serves is taken on trust.
Shapes: T tokens of a text, K likeliest tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from spark_jobs.errors import RequestError, TrainingError
from training.distill_spec import DistillSpec

URL, KEY = "NIGHTMILL_TEACHER_URL", "NIGHTMILL_TEACHER_KEY"
TRIES, TIMEOUT_S = 6, 120.0
BUSY = (408, 409, 425, 429)  # and all of 500 and above: worth another try


@dataclass(frozen=True)
class TopTokens:
    """ids int64 (T, K), -1 where there are fewer; log_p float32 (T, K). At place t: what may stand at t + 1; nothing at the last."""

    ids: np.ndarray
    log_p: np.ndarray


def check_served() -> None:
    """Raises: RequestError if this machine does not say where the teacher is."""
    if not os.environ.get(URL, "").startswith(("http://", "https://")):
        raise RequestError(
            f"distill.teacher served: {URL} is {os.environ.get(URL, 'not set')!r}; set it to the endpoint's address up to /v1, and {KEY} to "
            "its key if it wants one"
        )


@dataclass(frozen=True)
class ServedTeacher:
    """pause_s: before the second try; each later pause is twice as long."""

    spec: DistillSpec
    tokenizer: Tokenizer
    cache: Path
    pause_s: float = 1.0
    number_of: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: DistillSpec, tokenizer: Tokenizer, cache: Path, pause_s: float = 1.0) -> ServedTeacher:
        cache.mkdir(parents=True, exist_ok=True)
        return cls(spec, tokenizer, cache, pause_s, token_names(tokenizer))

    def top_tokens(self, ids: list[int]) -> TopTokens:
        """Of one text; asked the first time, then read. Raises: RequestError, TrainingError as `ask` does."""
        key = json.dumps([self.spec.teacher_name, self.spec.top_k, ids])
        path = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
        if not path.is_file():
            found = self.parsed(ids, self.ask(ids))
            half = path.with_suffix(f".{os.getpid()}.half")
            with half.open("wb") as file:
                np.savez(file, ids=found.ids, log_p=found.log_p)
            half.rename(path)
            return found
        with np.load(path) as saved:
            return TopTokens(saved["ids"], saved["log_p"])

    def ask(self, ids: list[int]) -> dict[str, Any]:
        """The endpoint's answer. Raises: RequestError if it refuses, TrainingError if it stays away or busy."""
        asked = {
            "model": self.spec.teacher_name, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": self.spec.top_k,
            "temperature": 1.0,
        }  # fmt: skip
        address = f"{os.environ[URL].rstrip('/')}/completions"
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        trouble = ""
        for number in range(TRIES):
            if number:
                time.sleep(self.pause_s * 2 ** (number - 1))
            request = urllib.request.Request(address, json.dumps(asked).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    told: dict[str, Any] = json.load(answer)
                    return told
            except urllib.error.HTTPError as error:
                trouble = f"status {error.code}, {error.read(300).decode(errors='replace').strip()}"
                if error.code < 500 and error.code not in BUSY:
                    raise RequestError(f"teacher at {address} refuses: {trouble}") from error
            except (OSError, ValueError) as error:  # no connection, a broken one, half an answer
                trouble = str(error)
        raise TrainingError(
            f"teacher at {address}: {TRIES} tries, the last: {trouble}; start it, then run the step again"
        )

    def parsed(self, ids: list[int], answer: dict[str, Any]) -> TopTokens:
        """Raises: RequestError if there are no log-probabilities in the answer, or of another number of tokens."""
        choices = answer.get("choices") or [{}]
        places = (choices[0].get("logprobs") or {}).get("top_logprobs")
        where = os.environ[URL]
        if not places:
            raise RequestError(
                f"teacher at {where} answers without log-probabilities (logprobs.top_logprobs of completions with echo): serve it "
                "with them, or teach from a model folder"
            )
        if len(places) < len(ids):
            raise RequestError(
                f"teacher at {where} answers for {len(places)} tokens, asked for {len(ids)}: it reads other tokens, or shortens texts"
            )
        found_ids = np.full((len(ids), self.spec.top_k), -1, np.int64)
        log_p = np.full((len(ids), self.spec.top_k), -np.inf, np.float32)
        for t, place in enumerate(places[1 : len(ids)]):
            likely = sorted((place or {}).items(), key=lambda item: -item[1])[: self.spec.top_k]
            known = [(number, value) for name, value in likely if (number := self._number(name)) is not None]
            for k, (number, value) in enumerate(known):
                found_ids[t, k], log_p[t, k] = number, value
        if (found_ids[: len(ids) - 1] < 0).all() and len(ids) > 1:
            raise RequestError(f"teacher at {where} names no token of the student's vocabulary: it reads other tokens")
        return TopTokens(found_ids, log_p)

    def _number(self, name: str) -> int | None:
        prefix, _, number = name.partition("token_id:")
        if not prefix and number.isdigit():
            return int(number) if int(number) < self.tokenizer.get_vocab_size() else None
        return self.number_of.get(name)


def token_names(tokenizer: Tokenizer) -> dict[str, int]:
    """Number of each token by its text, where no other token has the same; and by how the vocabulary writes it."""
    texts = {
        number: tokenizer.decode([number], skip_special_tokens=False) for number in range(tokenizer.get_vocab_size())
    }
    times = Counter(texts.values())
    return tokenizer.get_vocab() | {text: number for number, text in texts.items() if times[text] == 1}
