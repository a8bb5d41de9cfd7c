"""Which items of a benchmark stand in the training sequences: runs of so many consecutive tokens, found in one pass.

The runs of all items are held in memory, the corpus passes by, some row groups at a time: memory does not grow with it.
Runs are looked up by a 64-bit hash that is rolled over a whole block of tokens at once, and every hit is compared token by
token, so none is by chance. No run reaches over the border of two documents: training never shows it so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_jobs.manifests import Corpus
from training.pretrain.sequence_order import corpus_row_groups, row_facts
from training.pretrain.token_shards import Sequences

Ids = NDArray[np.int32]
Hashes = NDArray[np.uint64]
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication loses nothing
BLOCK_TOKENS = 1 << 18


@dataclass(frozen=True)
class Overlap:
    """Of one item: its runs of tokens, and how many of them stand in the corpus. No runs: too short to be judged."""

    num_runs: int
    num_found: int

    @property
    def contaminated(self) -> bool | None:
        return None if not self.num_runs else self.num_found > 0


def overlaps(items: Sequence[Sequence[int]], documents: Iterable[tuple[Ids, Ids]], num_tokens: int) -> list[Overlap]:
    """items: token ids each. documents: (tokens, lengths of the documents they consist of), block by block."""
    runs = [list(dict.fromkeys(_runs(ids, num_tokens))) for ids in items]
    holders: dict[bytes, list[int]] = {}
    for i, own in enumerate(runs):
        for run in own:
            holders.setdefault(run, []).append(i)
    wanted = _hashes_of_runs(holders, num_tokens)
    found: set[bytes] = set()
    for tokens, lengths in documents:
        found |= _found(tokens, lengths, wanted, holders, num_tokens)
    count = [0] * len(items)
    for run in found:
        for i in holders[run]:
            count[i] += 1
    return [Overlap(len(own), count[i]) for i, own in enumerate(runs)]


def corpus_blocks(corpus: Corpus) -> Iterator[tuple[Ids, Ids]]:
    """Tokens and document lengths of every training sequence of all nights; forgotten documents, which no training sees any
    more, are left out, and so are sequences that are never drawn."""
    groups = corpus_row_groups(corpus)
    facts = row_facts(corpus, groups)
    reader = Sequences(groups, corpus.seq_len, 0, 0.0, 0, facts)
    tokens: list[Ids] = []
    lengths: list[Ids] = []
    size = 0
    for row in range(int(reader.starts[-1])):
        if facts.weights is not None and facts.weights[row] == 0:
            continue
        own, pieces = reader.read(row)
        tokens, lengths, size = [*tokens, own], [*lengths, pieces], size + len(own)
        if size >= BLOCK_TOKENS:
            yield np.concatenate(tokens), np.concatenate(lengths)
            tokens, lengths, size = [], [], 0
    if tokens:
        yield np.concatenate(tokens), np.concatenate(lengths)


def rolled(tokens: Ids, num_tokens: int) -> Hashes:
    """Hash of the `num_tokens` tokens from each place on, modulo 2^64; as many as whole runs begin."""
    count = len(tokens) - num_tokens + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    values = tokens.astype(np.uint64) + np.uint64(1)
    total = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(num_tokens):
            total = total * BASE + values[place : place + count]
    return total


def _found(tokens: Ids, lengths: Ids, wanted: Hashes, holders: dict[bytes, list[int]], num_tokens: int) -> set[bytes]:
    hashes = rolled(tokens, num_tokens)
    if not len(hashes) or not len(wanted):
        return set()
    places = np.searchsorted(wanted, hashes).clip(max=len(wanted) - 1)
    hits = np.flatnonzero(wanted[places] == hashes)
    ends = np.repeat(np.cumsum(lengths), lengths)  # of the document that each token is in
    hits = hits[hits + num_tokens <= ends[hits]]
    runs = {_bytes(tokens[at : at + num_tokens]) for at in hits}
    return {run for run in runs if run in holders}


def _hashes_of_runs(holders: Iterable[bytes], num_tokens: int) -> Hashes:
    hashes = [rolled(np.frombuffer(run, np.int32), num_tokens) for run in holders]
    return np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)


def _runs(ids: Sequence[int], num_tokens: int) -> Iterator[bytes]:
    tokens = np.asarray(ids, np.int32)
    return (_bytes(tokens[i : i + num_tokens]) for i in range(len(tokens) - num_tokens + 1))


def _bytes(tokens: Ids) -> bytes:
    return np.ascontiguousarray(tokens, np.int32).tobytes()
