"""Counts over all training sequences of a corpus, and documents drawn from them; one row group in memory at a time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spark_jobs.manifests import Corpus
from training.pretrain.sequence_order import corpus_row_groups, row_facts
from training.pretrain.token_shards import Sequences
from training.watch.bins import LENGTH_EDGES, NUM_BUCKETS, buckets_of

AT_ONCE = 256  # sequences counted together
DRAW_SALT = 3  # the draw is another one than training's and the calibration's

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class CorpusCounts:
    """Documents as training sees them: a long one is several, each at most a sequence long.

    lengths float64 (49,): documents by tokens; buckets float64 (256,): tokens by hash. Both by how often training draws
    them. drawn: up to the number asked for, each as likely as its weight, in order of the corpus.
    """

    lengths: NDArray[np.float64]
    buckets: NDArray[np.float64]
    drawn: list[Tokens]
    num_documents: int
    num_tokens: int


def count_corpus(corpus: Corpus, num_drawn: int, seed: int, special_ids: tuple[int, ...]) -> CorpusCounts:
    """One pass. Forgotten documents are left out and weights of sources kept, as in training; special tokens are no text.

    The draw keeps the documents with the largest u^(1/weight), u uniform: a weighted reservoir without replacement
    (Efraimidis and Spirakis 2006), whose memory is what it keeps.
    """
    groups = corpus_row_groups(corpus)
    facts = row_facts(corpus, groups)
    reader = Sequences(groups, corpus.seq_len, 0, 0.0, seed, facts)
    rng = np.random.default_rng([seed, DRAW_SALT])
    counts = np.zeros(len(LENGTH_EDGES)), np.zeros(NUM_BUCKETS)
    kept: list[tuple[float, int, Tokens]] = []  # a heap whose top is the first to go
    num_documents = num_tokens = 0
    for first in range(0, int(reader.starts[-1]), AT_ONCE):
        rows = range(first, min(first + AT_ONCE, int(reader.starts[-1])))
        documents, weights = _documents_of(reader, rows, facts.weights, special_ids)
        if not documents:
            continue
        _add(counts, documents, weights)
        for number, (document, weight) in enumerate(zip(documents, weights, strict=True), num_documents):
            entry = (float(rng.random() ** (1 / weight)), number, document)
            if len(kept) < num_drawn:
                heapq.heappush(kept, entry)
            else:
                heapq.heappushpop(kept, entry)
        num_documents += len(documents)
        num_tokens += sum(len(d) for d in documents)
    drawn = [document for _, _, document in sorted(kept, key=lambda entry: entry[1])]
    return CorpusCounts(counts[0], counts[1], drawn, num_documents, num_tokens)


def _documents_of(
    reader: Sequences, rows: range, weights: NDArray[np.float64] | None, special_ids: tuple[int, ...]
) -> tuple[list[Tokens], list[float]]:
    """Documents of these sequences without special tokens, and how often an epoch draws each; those never drawn are not
    told. Copies, so that what is kept does not hold on to a whole row group."""
    documents, told = [], []
    for row in rows:
        weight = 1.0 if weights is None else float(weights[row])
        if weight <= 0:
            continue
        tokens, lengths = reader.read(row)
        for piece in np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []:
            document = piece[~np.isin(piece, special_ids)]
            if len(document):
                documents.append(np.array(document, np.int32))
                told.append(weight)
    return documents, told


def _add(
    counts: tuple[NDArray[np.float64], NDArray[np.float64]], documents: list[Tokens], weights: list[float]
) -> None:
    sizes = np.array([len(d) for d in documents])
    bins = np.searchsorted(LENGTH_EDGES, sizes, side="right") - 1
    np.add.at(counts[0], bins, weights)
    counts[1][:] += np.bincount(buckets_of(np.concatenate(documents)), np.repeat(weights, sizes), NUM_BUCKETS)
