"""Best-fit packing of documents into sequences (Ding et al. 2024, arXiv:2404.10830). No Spark.

Only documents longer than a sequence are cut: where a paragraph, line or sentence ends in the last half of the sequence, or,
if none does, at its full length. Pieces go in order of falling length, each into the sequence with the smallest space that
takes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spark_jobs.compiled import compiled

Ints = NDArray[np.int64]
Ranks = NDArray[np.uint8]


def cut(lengths: Ints, seq_len: int) -> tuple[Ints, Ints, Ints]:
    """(document, first token, number of tokens) of each piece, in document order; int64[num_pieces] each.

    lengths: int64[num_documents], tokens of each document; a document without tokens gives no piece.
    """
    counts = -(-lengths // seq_len)
    documents = np.repeat(np.arange(len(lengths)), counts)
    firsts = (np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)) * seq_len
    return documents, firsts, np.minimum(lengths[documents] - firsts, seq_len)


def cut_at_ends(lengths: Ints, ends: Ranks, seq_len: int) -> tuple[Ints, Ints, Ints]:
    """Like `cut`, but the last token of a piece has the highest rank among the last half of a sequence; of equal ones the
    last. Each piece but a document's last has more than seq_len // 2 tokens.

    ends: uint8[sum of lengths], by token: how good it is to end a piece behind it, 0 = inside a sentence.
    """
    pieces = np.empty(int((2 * lengths // seq_len + 1).sum()), np.int64)
    counts = np.empty(len(lengths), np.int64)
    num = _cut_at_ends(lengths, ends, seq_len, pieces, counts)
    sizes = pieces[:num].copy()
    documents = np.repeat(np.arange(len(lengths)), counts)
    before = np.cumsum(sizes) - sizes
    first_piece = np.cumsum(counts) - counts
    starts = (
        np.zeros(len(sizes), np.int64)
        if not len(sizes)
        else before - np.repeat(before[first_piece[counts > 0]], counts[counts > 0])
    )
    return documents, starts, sizes


@compiled
def _cut_at_ends(lengths: Ints, ends: Ranks, seq_len: int, pieces: Ints, counts: Ints) -> int:
    num = 0
    begin = 0
    for document in range(lengths.size):
        first, stop, count = begin, begin + lengths[document], 0
        while stop - first > seq_len:
            best, rank = first + seq_len, 0
            for last in range(first + seq_len - 1, first + seq_len // 2, -1):
                if ends[last] > rank:
                    best, rank = last + 1, ends[last]
            pieces[num] = best - first
            num, count, first = num + 1, count + 1, best
        if stop > first:
            pieces[num] = stop - first
            num, count = num + 1, count + 1
        counts[document] = count
        begin = stop
    return num


def best_fit(lengths: Ints, seq_len: int) -> Ints:
    """Sequence (0-based, in order of opening) of each piece, int64[num_pieces].

    lengths: int64[num_pieces], each 1..seq_len. Of equal pieces the earlier goes first, of equal spaces the one opened first.
    """
    order = np.argsort(-lengths, kind="stable")
    return _place(lengths, order, seq_len)


@compiled
def _place(lengths: Ints, order: Ints, seq_len: int) -> Ints:
    """`spaces` is a tree over the free space 1..seq_len: leaf s holds the number of open sequences with s free."""
    leaves = 1
    while leaves < seq_len + 1:
        leaves *= 2
    spaces = np.zeros(2 * leaves, np.int64)
    heads = np.full(seq_len + 1, -1, np.int64)  # sequences with that much space, as linked queues: first in, first out
    tails = np.full(seq_len + 1, -1, np.int64)
    following = np.full(lengths.size, -1, np.int64)
    chosen = np.empty(lengths.size, np.int64)
    opened = 0
    for piece in order:
        length = lengths[piece]
        space = _smallest_at_least(spaces, leaves, length)
        if space < 0:
            sequence, space = opened, seq_len
            opened += 1
        else:
            sequence = heads[space]
            heads[space] = following[sequence]
            following[sequence] = -1
            _add(spaces, leaves, space, -1)
        chosen[piece] = sequence
        left = space - length
        if left > 0:
            if heads[left] < 0:
                heads[left] = sequence
            else:
                following[tails[left]] = sequence
            tails[left] = sequence
            _add(spaces, leaves, left, 1)
    return chosen


@compiled
def _add(spaces: Ints, leaves: int, space: int, change: int) -> None:
    node = leaves + space
    while node >= 1:
        spaces[node] += change
        node //= 2


@compiled
def _smallest_at_least(spaces: Ints, leaves: int, length: int) -> int:
    """The smallest space >= length that some open sequence has, -1 if none."""
    node = leaves + length
    if spaces[node] > 0:
        return length
    while node > 1:
        if node % 2 == 0 and spaces[node + 1] > 0:
            node += 1
            while node < leaves:
                node = 2 * node if spaces[2 * node] > 0 else 2 * node + 1
            return node - leaves
        node //= 2
    return -1
