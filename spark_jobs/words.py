"""Words of a text with their places: what n-grams of evaluation items and repeated passages are made of. No Spark.

word   maximal run of letters, digits and marks; in scripts without spaces each letter with its marks.
n-gram n words in a row, as a 64-bit hash that is built word by word, so that the hash of a longer one starts with the shorter.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.compiled import compiled
from spark_jobs.minhash import mix
from spark_jobs.unicode_classes import LETTER, MARK, UNSPACED, WORD, unicode_classes
from spark_jobs.utf8 import Bytes, code_point, utf8_buffers

FNV_BASIS, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)

Words = NDArray[np.uint64]


@compiled
def extend(h: np.uint64, word: np.uint64) -> np.uint64:
    """Hash of an n-gram with one word more; 0 is the hash of none."""
    return mix((h ^ word) + GOLDEN_GAMMA)


def words_of(text: str) -> tuple[Words, NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """(hash, first byte, byte after the last, has a letter) of each word."""
    data, offsets = utf8_buffers(pa.array([text], pa.string()))
    size = int(offsets[1] - offsets[0]) + 1
    hashes, starts, stops = np.empty(size, np.uint64), np.empty(size, np.int64), np.empty(size, np.int64)
    letters = np.empty(size, np.bool_)
    count = cut_words(data, offsets[0], offsets[1], unicode_classes(), hashes, starts, stops, letters)
    return hashes[:count], starts[:count], stops[:count], letters[:count]


@compiled
def cut_words(  # type: ignore[no-untyped-def]
    data: Bytes, start: int, stop: int, classes: NDArray[np.uint8], hashes, starts, stops, letters
) -> int:
    """Fill the four arrays, each at least as long as the text in bytes; returns how many words there are."""
    count, at = 0, start
    is_open, last_unspaced = False, False
    h, has_letter = FNV_BASIS, False
    while at <= stop:
        if at < stop:
            code, width = code_point(data, at)
            flags = np.int64(classes[code]) if code < classes.size else np.int64(0)
        else:
            flags, width = np.int64(0), 1
        is_word = (flags & WORD) != 0
        is_unspaced = (flags & UNSPACED) != 0
        starts_word = (is_unspaced and not flags & MARK) or (last_unspaced and not is_unspaced)
        if is_open and (not is_word or starts_word):
            hashes[count], stops[count], letters[count] = h, at, has_letter
            count += 1
            is_open = False
        if is_word:
            if not is_open:
                starts[count] = at
                is_open, h, has_letter = True, FNV_BASIS, False
            for place in range(at, at + width):
                h = (h ^ np.uint64(data[place])) * FNV_PRIME
            has_letter = has_letter or (flags & LETTER) != 0
            last_unspaced = is_unspaced
        at += width
    return count
