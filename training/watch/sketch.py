"""What a server keeps of its traffic: counts in fixed bins, a line a minute, and nothing a person wrote.

    sketch = TrafficSketch(model.address)
    sketch.add(prompt_text, prompt_ids, answer_ids, prompt_nats, "stop")    # from any thread
    sketch.error()                                                          # asked rightly, not answered
    line = sketch.flush()                                                   # every minute: append as one JSON line

Memory is constant: 256 buckets twice, five histograms, at most one count a language of the identifier. No text, no token,
no id of a user or a request is held after `add` returns. Lines of one model merge: sums are exact (nats and shares are
rounded to 2^-20 first), so any grouping of the same requests gives the same line.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt

from spark_jobs.errors import DataError
from spark_jobs.manifests import Frozen
from training.watch.bins import (
    LENGTH_EDGES,
    NATS_EDGES,
    NUM_BUCKETS,
    SHARE_EDGES,
    bin_of,
    bucket_counts,
    repeated_share,
)
from training.watch.language import language_of

Finish = Literal["stop", "length"]
GRID = 2.0**20  # parts of one nat, or of a whole share, that sums are kept in


def _histogram(num_bins: int) -> Any:
    return Annotated[tuple[NonNegativeInt, ...], Field(min_length=num_bins, max_length=num_bins)]


Lengths = _histogram(len(LENGTH_EDGES))
Buckets = _histogram(NUM_BUCKETS)


class TrafficLine(Frozen):
    """Sums over the requests that one replica answered with one model in `seconds`.

    at: end of the time, UTC. requests: asked rightly; those not answered are also in `errors`, all others in every other
    field. *_bytes, *_tokens: requests by length, bins of `bins.LENGTH_EDGES`. *_buckets: tokens by hash of id.
    prompt_nats: -log likelihood of prompts under the model, of `prompt_scored_tokens`, where the server scored them;
    prompt_nats_per_token: prompts by their mean. repetition: sum of shares of repeated 4-grams over the answers of four
    tokens or more, which `repetition_shares` counts by share.
    """

    at: datetime
    seconds: NonNegativeFloat
    model: str
    requests: NonNegativeInt
    errors: NonNegativeInt
    prompt_bytes: Lengths  # type: ignore[valid-type]
    prompt_tokens: Lengths  # type: ignore[valid-type]
    answer_tokens: Lengths  # type: ignore[valid-type]
    token_buckets: Buckets  # type: ignore[valid-type]
    answer_buckets: Buckets  # type: ignore[valid-type]
    languages: dict[str, NonNegativeInt]
    prompt_nats: NonNegativeFloat
    prompt_scored_tokens: NonNegativeInt
    prompt_nats_per_token: _histogram(len(NATS_EDGES))  # type: ignore[valid-type]
    finish: dict[Finish, NonNegativeInt]
    repetition: NonNegativeFloat
    repetition_shares: _histogram(len(SHARE_EDGES))  # type: ignore[valid-type]


class TrafficSketch:
    """Counts of one model's traffic since the last `flush`. Every method may be called from any thread."""

    def __init__(self, model: str) -> None:
        """model: address of the model folder that answers, `models/...`; another model wants another sketch."""
        self.model = model
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._clear()

    def add(
        self,
        prompt_text: str,
        prompt_ids: Sequence[int],
        answer_ids: Sequence[int],
        prompt_nats: float | None,
        finish: Finish,
    ) -> None:
        """Count one answered request. prompt_nats: None where the prompt was not scored; its first token never is.

        finish: "stop" where the model or a stop sequence ended the answer, "length" where a limit cut it.
        """
        size, language = len(prompt_text.encode(errors="surrogatepass")), language_of(prompt_text)
        prompt, answer = bucket_counts(prompt_ids), bucket_counts(answer_ids)
        share = repeated_share(answer_ids)
        num_scored = max(len(prompt_ids) - 1, 0) if prompt_nats is not None and math.isfinite(prompt_nats) else 0
        with self._lock:
            self._requests += 1
            self._prompt_bytes[bin_of(size, LENGTH_EDGES)] += 1
            self._prompt_tokens[bin_of(len(prompt_ids), LENGTH_EDGES)] += 1
            self._answer_tokens[bin_of(len(answer_ids), LENGTH_EDGES)] += 1
            self._token_buckets += prompt
            self._answer_buckets += answer
            self._languages[language] = self._languages.get(language, 0) + 1
            self._finish[finish] += 1
            if num_scored and prompt_nats is not None:
                self._nats += _rounded(max(prompt_nats, 0.0))
                self._scored_tokens += num_scored
                self._nats_per_token[bin_of(max(prompt_nats, 0.0) / num_scored, NATS_EDGES)] += 1
            if not math.isnan(share):
                self._repetition += _rounded(share)
                self._shares[bin_of(share, SHARE_EDGES)] += 1

    def error(self) -> None:
        """Count a request that was right and got no answer. A refused one (4xx) is none of the model's, and not counted."""
        with self._lock:
            self._requests += 1
            self._errors += 1

    def flush(self) -> dict[str, Any]:
        """The line since the last flush, ready for `json.dumps`; counting starts anew. A quiet minute gives a line too."""
        with self._lock:
            now = time.monotonic()
            line = {
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "seconds": round(now - self._since, 3),
                "model": self.model,
                "requests": self._requests,
                "errors": self._errors,
                "prompt_bytes": self._prompt_bytes.tolist(),
                "prompt_tokens": self._prompt_tokens.tolist(),
                "answer_tokens": self._answer_tokens.tolist(),
                "token_buckets": self._token_buckets.tolist(),
                "answer_buckets": self._answer_buckets.tolist(),
                "languages": dict(sorted(self._languages.items())),
                "prompt_nats": self._nats,
                "prompt_scored_tokens": self._scored_tokens,
                "prompt_nats_per_token": self._nats_per_token.tolist(),
                "finish": dict(self._finish),
                "repetition": self._repetition,
                "repetition_shares": self._shares.tolist(),
            }
            self._since = now
            self._clear()
            return line

    def _clear(self) -> None:
        self._requests = self._errors = self._scored_tokens = 0
        self._nats = self._repetition = 0.0
        self._prompt_bytes, self._prompt_tokens, self._answer_tokens = np.zeros((3, len(LENGTH_EDGES)), np.int64)
        self._token_buckets, self._answer_buckets = np.zeros((2, NUM_BUCKETS), np.int64)
        self._nats_per_token, self._shares = np.zeros(len(NATS_EDGES), np.int64), np.zeros(len(SHARE_EDGES), np.int64)
        self._languages: dict[str, int] = {}
        self._finish: dict[Finish, int] = {"stop": 0, "length": 0}


def merge(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One line of all: sums, the seconds too; `at` is the latest.

    Raises: DataError if there is none, or if they are of several models, whose answers must not be mixed.
    """
    parts = list(lines)
    models = sorted({line["model"] for line in parts})
    if len(models) != 1:
        raise DataError(
            f"lines of one model can be merged, got {len(parts)} lines of {models or 'none'}: group them first"
        )
    fields = TrafficLine.model_fields.keys() - {"at", "model"}
    last = max(parts, key=lambda line: datetime.fromisoformat(line["at"]))
    return {"at": last["at"], "model": models[0]} | {
        name: _sum([line[name] for line in parts]) for name in sorted(fields)
    }


def _sum(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: sum(v.get(key, 0) for v in values) for key in sorted({key for v in values for key in v})}
    if isinstance(values[0], list):
        return [sum(column) for column in zip(*values, strict=True)]
    return sum(values)


def _rounded(value: float) -> float:
    return round(value * GRID) / GRID
