"""What the champion was trained on and how it writes, in the bins of traffic: the snapshot that live traffic is compared with.

`data/reference.json`   counts (below), with the language of each drawn document
`data/texts.safetensors`  documents: token buckets (uint8) and lengths (int32) of drawn training documents; scored: nats a
                        token (float32) and lengths (int32) of held-out documents, under the champion
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from spark_jobs.manifests import Frozen
from training.manifests import WatchReference

TEXTS = "texts.safetensors"
COUNTS = "reference.json"


class ReferenceCounts(Frozen):
    """languages, prompt_bytes: of drawn documents. prompt_tokens (by how often training draws them), num_documents,
    num_tokens: of all. finish, repetition_shares, answer_tokens: of the champion's greedy answers to held-out beginnings.
    special_buckets: where special tokens fall, which are no text and may come with a prompt or not.
    """

    languages: dict[str, int]
    prompt_bytes: tuple[int, ...]
    prompt_tokens: tuple[float, ...]
    token_buckets: tuple[float, ...]
    num_documents: int
    num_tokens: int
    finish: dict[str, int] = Field(default_factory=dict)
    answer_tokens: tuple[int, ...] = ()
    repetition: float = 0.0
    repetition_shares: tuple[int, ...] = ()
    special_buckets: tuple[int, ...] = ()


class Texts(Frozen, arbitrary_types_allowed=True):
    """buckets: one uint8 array a drawn document. nats: one float32 array a held-out document, a number a token."""

    buckets: list[NDArray[np.uint8]]
    nats: list[NDArray[np.float32]]


def save(folder: Path, counts: ReferenceCounts, texts: Texts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COUNTS).write_text(counts.model_dump_json(indent=1) + "\n")
    arrays = _flat("documents", texts.buckets, np.uint8) | _flat("scored", texts.nats, np.float32)
    save_file(arrays, folder / TEXTS)


def load(reference: WatchReference) -> tuple[ReferenceCounts, Texts]:
    folder = Path(reference.folder())
    arrays = load_file(folder / TEXTS)
    texts = Texts(buckets=_parts("documents", arrays), nats=_parts("scored", arrays))
    return ReferenceCounts.model_validate_json((folder / COUNTS).read_text()), texts


def _flat(name: str, parts: Sequence[NDArray[Any]], kind: type[np.generic]) -> dict[str, NDArray[Any]]:
    lengths = np.array([len(part) for part in parts], np.int32)
    return {name: np.concatenate([np.empty(0, kind), *parts]).astype(kind), f"{name}_lengths": lengths}


def _parts(name: str, arrays: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    ends = np.cumsum(arrays[f"{name}_lengths"])
    return np.split(arrays[name], ends[:-1]) if len(ends) else []
