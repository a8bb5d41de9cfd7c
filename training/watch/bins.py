"""Fixed bins in which traffic and training texts are counted, so that lines of any server and any night add up.

Every histogram is a list of counts, one a bin; a value belongs to the last bin whose lower edge it reaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

# Lengths (bytes, tokens): 0, 1, 2, 3, 4, 6, 8, 12, 16, ... a bin for each half doubling, the last from 16 Mi on.
LENGTH_EDGES: tuple[int, ...] = (0, 1, *(size for k in range(1, 24) for size in (2**k, 3 * 2 ** (k - 1))), 2**24)
# Nats a token of one prompt, by quarters; the last from 16 on (log 10^7, more than any vocabulary's uniform guess).
NATS_EDGES: tuple[float, ...] = tuple(i / 4 for i in range(65))
# Share of repeated n-grams of one answer, by twentieths; the last is 1 exactly.
SHARE_EDGES: tuple[float, ...] = tuple(i / 20 for i in range(21))

NUM_BUCKETS = 256  # of token ids
KNUTH = 2654435761  # floor(2^32 / golden ratio), odd: multiplicative hashing, Knuth, TAOCP 3, section 6.4
GRAM = 4  # tokens in an n-gram of the repetition measure


def bin_of(value: float, edges: tuple[float, ...]) -> int:
    """Number of the bin `value` (not below the first edge) falls into."""
    return int(np.searchsorted(edges, value, side="right")) - 1


def buckets_of(ids: NDArray[np.integer] | Sequence[int]) -> NDArray[np.uint8]:
    """Upper eight bits of a multiplicative hash of each id.

    A hash, not the id modulo 256: byte-level vocabularies keep bytes in order at the front, and frequent merges next.
    Counts of buckets show that the mixture of tokens moved, never which tokens they were: a bucket is shared by 1/256 of
    the vocabulary.
    """
    hashed = (np.asarray(ids, np.uint64) * np.uint64(KNUTH)) & np.uint64(0xFFFFFFFF)
    return (hashed >> np.uint64(24)).astype(np.uint8)


def bucket_counts(ids: NDArray[np.integer] | Sequence[int]) -> Counts:
    """int64 (256,): tokens a bucket."""
    return np.bincount(buckets_of(ids), minlength=NUM_BUCKETS).astype(np.int64)


def repeated_share(ids: Sequence[int]) -> float:
    """1 - distinct 4-grams / 4-grams of one answer (rep-4 of Welleck et al. 2020, arXiv:1908.04319, section 6).

    0 where all differ, near 1 for an answer that runs in a circle. NaN for fewer than four tokens.
    """
    num_grams = len(ids) - GRAM + 1
    if num_grams < 1:
        return math.nan
    return 1.0 - len(set(zip(*(ids[i : i + num_grams] for i in range(GRAM)), strict=True))) / num_grams
