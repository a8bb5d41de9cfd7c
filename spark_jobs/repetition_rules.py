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
        for n in range(2, min(max_ngram, 10, num_words) + 1):
            table[2 + n, text] = _covered(words[:num_words], word_chars[:num_words], n)
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
def _covered(words: NDArray[np.uint64], chars: NDArray[np.int64], n: int) -> float:
    """Share of the words' characters inside the top n-gram (n <= 4) or inside any repeated n-gram."""
    count = words.size - n + 1
    if count < 2:
        return 0.0
    grams = np.empty(count, np.uint64)
    for first in range(count):
        h = np.uint64(0)
        for place in range(first, first + n):
            h = mix((h ^ words[place]) + GOLDEN_GAMMA)
        grams[first] = h
    order = np.argsort(grams)
    is_inside = np.zeros(words.size, np.bool_)
    best_first, best_stop, best_size, best_place = 0, 0, 0, 0
    run = 0
    while run < count:
        stop = run + 1
        while stop < count and grams[order[stop]] == grams[order[run]]:
            stop += 1
        repeats = stop - run
        if repeats >= 2 and n > 4:
            for place in range(run, stop):
                is_inside[order[place] : order[place] + n] = True
        elif repeats >= 2 and repeats >= best_stop - best_first:
            size, first = 0, words.size
            for place in range(run, stop):
                first = min(first, order[place])
            for place in range(first, first + n):
                size += chars[place]
            is_more = repeats > best_stop - best_first or size > best_size or (size == best_size and first < best_place)
            if is_more:
                best_first, best_stop, best_size, best_place = run, stop, size, first
        run = stop
    for place in range(best_first, best_stop):
        is_inside[order[place] : order[place] + n] = True
    covered, total = 0, 0
    for place in range(words.size):
        total += chars[place]
        if is_inside[place]:
            covered += chars[place]
    return covered / total
