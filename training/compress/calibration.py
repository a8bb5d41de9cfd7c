"""Texts on which layers are measured: documents of the run's own training corpus that no evaluation document shares.

Sequences are documents as training sees them, each alone (packed side by side they would look at one another, which they
never do in training), cut at the length asked for, without padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from spark_jobs.errors import DataError, RequestError
from spark_jobs.manifests import Corpus, TokenizerFiles
from training.compress_spec import CalibrationSpec
from training.evaluate.documents import every_heldout_text, load_tokenizer
from training.manifests import Calibration
from training.pretrain.sequence_order import corpus_row_groups, epoch_order, row_facts
from training.pretrain.token_shards import Sequences

SEQUENCES = "sequences.safetensors"
MIN_TOKENS = 2  # a shorter piece says nothing about attention
ENCODED_AT_ONCE = 256
DRAW_SALT = 2  # the draw is another one than training's, whose seeds are small numbers too


@dataclass(frozen=True)
class Drawn:
    """sequences: int32 token ids each. num_drawn: before those that overlap were left out."""

    sequences: list[np.ndarray]
    num_drawn: int
    num_overlapping: int


def draw(corpus: Corpus, tokenizer: TokenizerFiles, spec: CalibrationSpec) -> Drawn:
    """Up to `spec.num_sequences` sequences; a spare share of `max_overlap` is drawn for those that are left out.

    Raises: DataError if the corpus has no document; RequestError if more than `max_overlap` of what was drawn shares
    `overlap_tokens` consecutive tokens with a held-out document.
    """
    spare = int(np.ceil(spec.num_sequences * spec.max_overlap))
    drawn = draw_documents(corpus, spec.num_sequences + spare, spec.sequence_length, spec.seed)
    if not drawn:
        raise DataError(f"corpus {corpus.address} has no document of {MIN_TOKENS} tokens: add documents")
    encoder = load_tokenizer(Path(tokenizer.folder()))
    found = overlapping(drawn, encoded_texts(every_heldout_text(corpus), encoder), spec.overlap_tokens)
    if len(found) > max(1, spec.max_overlap * len(drawn)) or len(found) == len(drawn):
        raise RequestError(
            f"calibration: {len(found)} of {len(drawn)} sequences share {spec.overlap_tokens} consecutive tokens with a "
            f"held-out document, at most {spec.max_overlap:.0%} wanted: remove near-duplicates from the corpus, or raise "
            "compress.calibration.overlap_tokens or compress.calibration.max_overlap"
        )
    kept = [tokens for i, tokens in enumerate(drawn) if i not in found]
    return Drawn(kept[: spec.num_sequences], len(drawn), len(found))


def draw_documents(corpus: Corpus, num_wanted: int, length: int, seed: int) -> list[np.ndarray]:
    """Documents of the training sequences, first tokens of each, in an order drawn by `seed`.

    A training sequence gives one document, that of a random one of its tokens, so that long ones come as often as training
    sees their tokens. Forgotten documents are left out and sources weighted, as in training.
    """
    groups = corpus_row_groups(corpus)
    facts = row_facts(corpus, groups)
    rng = np.random.default_rng([seed, DRAW_SALT])
    epoch = epoch_order(groups, 0.0, seed, 0, facts.weights)
    rows = rng.permutation(epoch)[:num_wanted]
    places = rng.random(len(rows))
    reader = Sequences(groups, corpus.seq_len, 0, 0.0, seed, facts)
    found: dict[int, np.ndarray] = {}
    for i in np.argsort(rows, kind="stable"):  # neighbours lie in one row group, which is read once
        document = _document_at(*reader.read(int(rows[i])), float(places[i]))[:length]
        if len(document) >= MIN_TOKENS:
            found[int(i)] = document
    return [found[i] for i in sorted(found)]


def _document_at(tokens: np.ndarray, lengths: np.ndarray, place: float) -> np.ndarray:
    """The document in which the token at `place` (share of the sequence, below 1) lies; empty where there is none."""
    ends = np.cumsum(lengths)
    number = int(np.searchsorted(ends, int(place * len(tokens)), side="right"))
    return tokens[ends[number] - lengths[number] : ends[number]] if len(tokens) else tokens


def encoded_texts(texts: Iterable[str], encoder: Tokenizer) -> Iterator[Sequence[int]]:
    """Token ids of each text, without special tokens; a few hundred texts in memory at a time."""
    waiting: list[str] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == ENCODED_AT_ONCE:
            yield from (e.ids for e in encoder.encode_batch(waiting, add_special_tokens=False))
            waiting.clear()
    yield from (e.ids for e in encoder.encode_batch(waiting, add_special_tokens=False))


def overlapping(drawn: Sequence[np.ndarray], evaluated: Iterable[Sequence[int]], num_tokens: int) -> set[int]:
    """Numbers of the sequences that share `num_tokens` consecutive tokens with one of the `evaluated` texts.

    The n-grams of what was drawn are held in memory, the evaluated texts pass by. A text of fewer tokens shares none.
    """
    holders: dict[bytes, set[int]] = {}
    for i, tokens in enumerate(drawn):
        for gram in _grams(tokens, num_tokens):
            holders.setdefault(gram, set()).add(i)
    found: set[int] = set()
    for ids in evaluated:
        for gram in _grams(ids, num_tokens):
            found |= holders.get(gram, set())
    return found


def _grams(ids: np.ndarray | Sequence[int], num_tokens: int) -> list[bytes]:
    tokens = np.ascontiguousarray(ids, np.int32)
    raw, width = tokens.tobytes(), tokens.itemsize
    return [raw[i * width : (i + num_tokens) * width] for i in range(len(tokens) - num_tokens + 1)]


def save(folder: Path, sequences: Sequence[np.ndarray]) -> None:
    """tokens int32, one sequence behind the other, and lengths int32."""
    tokens = torch.from_numpy(np.concatenate(sequences).astype(np.int32))
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.int32)
    save_file({"tokens": tokens, "lengths": lengths}, folder / SEQUENCES)


def load(calibration: Calibration) -> list[Tensor]:
    """Sequences, 1-D int64 each."""
    stored = load_file(Path(calibration.folder()) / SEQUENCES)
    return list(stored["tokens"].to(torch.int64).split(stored["lengths"].tolist()))
