"""Kernels of the duplicate step: normalised text, shingles, MinHash band keys. No Spark.

Definitions, all part of the index on disk (golden vectors: tests/spark_jobs/test_minhash.py):

 normalised  NFKC, casefold, NFKC again, runs of white space to one space. No mark is stripped: that would make different
             words of Hindi, Thai or Vietnamese equal.
 word        maximal run of letters, digits and marks of the normalised text.
 shingle     `ngram` words in a row; in texts written mostly in scripts without spaces, or whose words are longer than 10
             characters on average, `ngram` characters of the words in a row. As a 64-bit hash; a document's shingles are a set.
 short       a document with fewer than `ngram` words (characters) has no shingles: only exact copies of it are found.
 MinHash     minimum over the shingles x of mix(x ^ s_i), with s_i from the SplitMix64 sequence of the seed
             (Steele et al. 2014); mix is its finaliser. All arithmetic is modulo 2^64 by definition.
 band key    the band's `rows` minima folded by h = mix(h ^ minimum), starting from the band number plus one.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.compiled import compiled
from spark_jobs.unicode_classes import UNSPACED, WORD, unicode_classes
from spark_jobs.utf8 import Bytes, Offsets, code_point, utf8_buffers

NORMALISER = "nfkc-casefold-1"  # version of `normalised`, of words and of shingles: part of every index
MAX_MEAN_WORD_LENGTH = 10.0  # characters; above it the text is not made of words (data without spaces, code)
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
FNV_BASIS, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
S27, S30, S31 = np.uint64(27), np.uint64(30), np.uint64(31)


def normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def shingle_sets(normals: pa.Array, ngram: int) -> tuple[NDArray[np.uint64], Offsets]:
    """Shingles of each normalised text: (uint64 sorted and distinct in each text, offsets int64[n + 1])."""
    return _shingle_sets(*utf8_buffers(normals), unicode_classes(), ngram)  # type: ignore[no-any-return]


def band_keys(shingles: NDArray[np.uint64], offsets: Offsets, bands: int, rows: int, seed: int) -> NDArray[np.uint64]:
    """uint64[n, bands]; the row of a text without shingles is meaningless."""
    return _band_keys(shingles, offsets, bands, rows, np.uint64(seed))  # type: ignore[no-any-return]


@compiled
def mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> S30)) * MIX_1
    x = (x ^ (x >> S27)) * MIX_2
    return x ^ (x >> S31)


@compiled
def _shingle_sets(data: Bytes, offsets: Offsets, classes: NDArray[np.uint8], ngram: int):  # type: ignore[no-untyped-def]
    num_texts = offsets.size - 1
    ends = np.zeros(num_texts + 1, np.int64)
    out = np.empty(max(offsets[-1] - offsets[0], 1), np.uint64)  # a text has fewer shingles than bytes
    units = np.empty(16, np.uint64)
    size = 0
    for text in range(num_texts):
        start, stop = offsets[text], offsets[text + 1]
        if units.size < stop - start:
            units = np.empty(2 * (stop - start), np.uint64)
        num_units = _hash_units(data, start, stop, classes, units)
        count = num_units - ngram + 1
        if count > 0:
            for first in range(count):
                h = np.uint64(0)
                for place in range(first, first + ngram):
                    h = mix((h ^ units[place]) + GOLDEN_GAMMA)
                out[size + first] = h
            ordered = np.sort(out[size : size + count])
            kept = 0
            for place in range(count):
                if place == 0 or ordered[place] != ordered[place - 1]:
                    out[size + kept] = ordered[place]
                    kept += 1
            size += kept
        ends[text + 1] = size
    return out[:size].copy(), ends


@compiled
def _hash_units(data: Bytes, start: int, stop: int, classes: NDArray[np.uint8], units: NDArray[np.uint64]) -> int:
    """Fill `units` with the hashes of the text's words, or of their characters; returns how many."""
    words, chars, unspaced = 0, 0, 0
    at, open_word, h = start, False, FNV_BASIS
    while at < stop:
        code, width = code_point(data, at)
        flags = np.int64(classes[code]) if code < classes.size else 0
        if flags & WORD:
            if not open_word:
                open_word, h = True, FNV_BASIS
            chars += 1
            if flags & UNSPACED:
                unspaced += 1
            for place in range(at, at + width):
                h = (h ^ np.uint64(data[place])) * FNV_PRIME
        elif open_word:
            units[words] = h
            words += 1
            open_word = False
        at += width
    if open_word:
        units[words] = h
        words += 1
    if 2 * unspaced <= chars <= MAX_MEAN_WORD_LENGTH * words:
        return words
    chars, at = 0, start
    while at < stop:
        code, width = code_point(data, at)
        if code < classes.size and classes[code] & WORD:
            units[chars] = mix(np.uint64(code) + GOLDEN_GAMMA)
            chars += 1
        at += width
    return chars


@compiled
def _band_keys(  # type: ignore[no-untyped-def]
    shingles: NDArray[np.uint64], offsets: Offsets, bands: int, rows: int, seed: np.uint64
):
    num_texts = offsets.size - 1
    seeds = np.empty(bands * rows, np.uint64)
    for number in range(seeds.size):
        seeds[number] = mix(seed + np.uint64(number + 1) * GOLDEN_GAMMA)
    keys = np.empty((num_texts, bands), np.uint64)
    for text in range(num_texts):
        for band in range(bands):
            key = np.uint64(band + 1)
            for row in range(rows):
                salt = seeds[band * rows + row]
                least = np.uint64(0xFFFFFFFFFFFFFFFF)
                for place in range(offsets[text], offsets[text + 1]):
                    h = mix(shingles[place] ^ salt)
                    least = min(least, h)
                key = mix(key ^ least)
            keys[text, band] = key
    return keys
