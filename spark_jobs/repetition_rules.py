"""Kernels of the Gopher repetition rules (Rae et al. 2021, arXiv:2112.11446, table A1). No Spark.

Definitions; every value lies in [0, 1] and exists for every text (0 where there is nothing to divide by). Public pipelines
differ in them; the reading of n-grams is the "no character counted twice" one of DCLM and datamap-rs.

 line        between CR LF, LF or CR only, stripped; empty ones do not count. Lines are equal if their characters are.
 paragraph   lines in a row without an empty one between them; equal if all their lines are.
 duplicates  the later copies: their number of all lines (paragraphs), and their characters of the characters of all lines
             (of all lines of paragraphs).
 word        maximal run of characters that are not white space, in scripts without spaces a letter with its marks; an n-gram
             is n words in a row.
 top n-gram  (n = 2, 3, 4) the most frequent of those that occur twice or more (then the one with most characters, then the
             first): characters of the words inside any of its occurrences, each word once, of the characters of all words.
 dup n-gram  (n = 5..10) the same for all n-grams that occur twice or more.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.compiled import compiled
from spark_jobs.minhash import mix
from spark_jobs.unicode_classes import MARK, SPACE, UNSPACED, unicode_classes
from spark_jobs.utf8 import Bytes, Offsets, code_point, utf8_buffers

TOP_NGRAMS = (2, 3, 4)
DUP_NGRAMS = (5, 6, 7, 8, 9, 10)
NAMES = (
    "dup_line_ratio", "dup_paragraph_ratio", "dup_line_char_ratio", "dup_paragraph_char_ratio",
    *(f"top_{n}gram_ratio" for n in TOP_NGRAMS), *(f"dup_{n}gram_ratio" for n in DUP_NGRAMS),
)  # fmt: skip
LF, CR = 0x0A, 0x0D
FNV_BASIS, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def measure(texts: pa.Array, max_ngram: int = 10) -> dict[str, NDArray[np.float64]]:
    """float64[n] of each of NAMES; 0 for n-grams longer than `max_ngram`, which cost a sort of the words each."""
    table = _measure(*utf8_buffers(texts), unicode_classes(), max_ngram)
    return dict(zip(NAMES, table, strict=True))


@compiled
def _measure(data: Bytes, offsets: Offsets, classes: NDArray[np.uint8], max_ngram: int):  # type: ignore[no-untyped-def]
    """float64[13, n] in the order of NAMES."""
    num_texts = offsets.size - 1
    table = np.zeros((13, num_texts), np.float64)
    longest = 1
    for text in range(num_texts):
        longest = max(longest, offsets[text + 1] - offsets[text])
    words = np.empty(longest // 2 + 2, np.uint64)
    word_chars = np.empty(longest // 2 + 2, np.int64)
    lines = np.empty(longest // 2 + 2, np.uint64)
    line_chars = np.empty(longest // 2 + 2, np.int64)
    paragraphs = np.empty(longest // 2 + 2, np.uint64)
    paragraph_chars = np.empty(longest // 2 + 2, np.int64)
    for text in range(num_texts):
        num_words, num_lines, num_paragraphs = _cut(
            data,
            offsets[text],
            offsets[text + 1],
            classes,
            words,
            word_chars,
            lines,
            line_chars,
            paragraphs,
            paragraph_chars,
        )
        table[0, text], table[2, text] = _later_copies(lines[:num_lines], line_chars[:num_lines])
        table[1, text], table[3, text] = _later_copies(paragraphs[:num_paragraphs], paragraph_chars[:num_paragraphs])
        _cover(words[:num_words], word_chars[:num_words], max_ngram, table[4:, text])
    return table


@compiled
def _cut(data, start, stop, classes, words, word_chars, lines, line_chars, paragraphs, paragraph_chars):  # type: ignore[no-untyped-def]
    """Fill the hashes and the lengths in characters of words, lines and paragraphs; returns how many of each."""
    num_words, num_lines, num_paragraphs = 0, 0, 0
    word, chars, word_is_unspaced = FNV_BASIS, 0, False
    line, line_size, pending = FNV_BASIS, 0, 0  # `pending`: inner white space, hashed once something follows it
    paragraph, paragraph_size = FNV_BASIS, 0
    pending_hash = FNV_BASIS
    at, breaks, after_cr = start, 0, False
    while at <= stop:
        if at < stop:
            code, width = code_point(data, at)
            flags = np.int64(classes[code]) if code < classes.size else np.int64(0)
            is_space = (flags & SPACE) != 0
        else:
            code, width, flags, is_space = np.int64(LF), 1, np.int64(SPACE), True  # the end closes whatever is open
        is_unspaced = (flags & UNSPACED) != 0
        if chars > 0 and ((is_unspaced and not flags & MARK) or (word_is_unspaced and not is_unspaced)):
            words[num_words], word_chars[num_words] = word, chars
            num_words += 1
            word, chars = FNV_BASIS, 0
        if is_space:
            if chars > 0:
                words[num_words], word_chars[num_words] = word, chars
                num_words += 1
                word, chars = FNV_BASIS, 0
            if code == LF and after_cr:
                after_cr = False
                at += width
                continue
            after_cr = code == CR
            if code in (LF, CR):
                breaks += 1
                if line_size > 0:
                    lines[num_lines], line_chars[num_lines] = line, line_size
                    num_lines += 1
                    paragraph = mix(paragraph ^ line)
                    paragraph_size += line_size
                    line, line_size, breaks = FNV_BASIS, 0, 1
                pending, pending_hash = 0, FNV_BASIS
                if (breaks >= 2 or at >= stop) and paragraph_size > 0:
                    paragraphs[num_paragraphs], paragraph_chars[num_paragraphs] = paragraph, paragraph_size
                    num_paragraphs += 1
                    paragraph, paragraph_size = FNV_BASIS, 0
            elif line_size > 0:
                pending += 1
                pending_hash = (pending_hash ^ np.uint64(code)) * FNV_PRIME
        else:
            after_cr = False
            if pending > 0:
                line = mix(line ^ pending_hash)
                line_size += pending
                pending, pending_hash = 0, FNV_BASIS
            for place in range(at, at + width):
                word = (word ^ np.uint64(data[place])) * FNV_PRIME
                line = (line ^ np.uint64(data[place])) * FNV_PRIME
            chars += 1
            word_is_unspaced = is_unspaced
            line_size += 1
        at += width
    return num_words, num_lines, num_paragraphs


@compiled
def _later_copies(hashes: NDArray[np.uint64], chars: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    """(copies of all, characters of copies of all characters)."""
    if hashes.size < 2:
        return 0.0, 0.0
    order = np.argsort(hashes)
    copies, copied = 0, 0
    for place in range(1, order.size):
        if hashes[order[place]] == hashes[order[place - 1]]:
            copies += 1
            copied += chars[order[place]]  # equal lines are equally long
    return copies / hashes.size, copied / chars.sum()


@compiled
def _cover(words: NDArray[np.uint64], chars: NDArray[np.int64], max_ngram: int, shares: NDArray[np.float64]) -> None:
    """Fill shares[n - 2] for n = 2..max_ngram: characters inside the top n-gram (n <= 4) or inside any repeated n-gram.

    An n-gram occurs twice only where its first n - 1 words do, so each n looks at the places left over by the one before.
    """
    places, hashes = np.arange(words.size), np.zeros(words.size, np.uint64)
    num, total = words.size, chars.sum()
    for place in range(num):
        hashes[place] = mix(words[place] + GOLDEN_GAMMA)
    for n in range(2, min(max_ngram, 10) + 1):
        num = _extend(words, places, hashes, num, n)
        if num < 2:
            return
        order = np.argsort(hashes[:num])
        is_inside = np.zeros(words.size, np.bool_)
        if n <= 4:
            first, stop = _top_ngram(places, hashes, chars, order, n)
            for rank in range(first, stop):
                place = places[order[rank]]
                is_inside[place : place + n] = True
        num = _keep_repeated(places, hashes, order)
        if n > 4:
            for rank in range(num):
                is_inside[places[rank] : places[rank] + n] = True
        covered = 0
        for place in range(words.size):
            covered += chars[place] if is_inside[place] else 0
        shares[n - 2] = covered / total


@compiled
def _extend(words, places, hashes, num: int, n: int) -> int:  # type: ignore[no-untyped-def]
    """Hashes of n - 1 words become those of n words, where there are n; returns at how many places."""
    kept = 0
    for rank in range(num):
        place = places[rank]
        if place + n <= words.size:
            places[kept] = place
            hashes[kept] = mix((hashes[rank] ^ words[place + n - 1]) + GOLDEN_GAMMA)
            kept += 1
    return kept


@compiled
def _top_ngram(places, hashes, chars, order, n: int):  # type: ignore[no-untyped-def]
    """(first, stop) in `order` of the occurrences of the top n-gram; equal if none occurs twice."""
    best_first, best_stop, best_size, best_place = 0, 0, 0, 0
    run = 0
    while run < order.size:
        stop = run + 1
        while stop < order.size and hashes[order[stop]] == hashes[order[run]]:
            stop += 1
        repeats = stop - run
        if repeats >= 2 and repeats >= best_stop - best_first:
            size, first = 0, chars.size
            for rank in range(run, stop):
                first = min(first, places[order[rank]])
            for place in range(first, first + n):
                size += chars[place]
            is_more = repeats > best_stop - best_first or size > best_size or (size == best_size and first < best_place)
            if is_more:
                best_first, best_stop, best_size, best_place = run, stop, size, first
        run = stop
    return best_first, best_stop


@compiled
def _keep_repeated(places, hashes, order) -> int:  # type: ignore[no-untyped-def]
    """Move the places whose hash occurs twice or more to the front, in the order of hashes; returns how many."""
    ordered, sorted_hashes = places[order], hashes[order]
    kept = 0
    for rank in range(order.size):
        is_repeated = (rank > 0 and sorted_hashes[rank] == sorted_hashes[rank - 1]) or (
            rank + 1 < order.size and sorted_hashes[rank] == sorted_hashes[rank + 1]
        )
        if is_repeated:
            places[kept], hashes[kept] = ordered[rank], sorted_hashes[rank]
            kept += 1
    return kept
