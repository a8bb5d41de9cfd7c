"""Kernels of the line-based rules: C4 (Raffel et al. 2020, arXiv:1910.10683) and FineWeb (arXiv:2406.17557). No Spark.

C4 first removes lines, then judges what is left:
 - a line stays if it ends in terminal punctuation, is no ellipsis line, has enough words, no word of more than 1000
   characters, no "javascript" and no policy phrase (any case). [1], [edit] and [citation needed] are struck out first.
 - the document goes if it holds "lorem ipsum" or "{", or if what is left has too few sentences.
Two pairs (words a line, sentences) are in circulation: 5 and 3 in the TensorFlow Datasets script, 3 and 5 in datatrove.

FineWeb: share of lines ending in terminal punctuation, share of lines shorter than 30 characters, line breaks per word, and
characters in duplicated lines (repetition_rules.py; the FineWeb text says 0.1, its appendix and code 0.01).

Terminal punctuation is that of many scripts, and quotes and brackets may follow it: a rule of ASCII marks alone would drop
every Chinese, Arabic or Hindi page. Lines end at CR LF, LF or CR only. A sentence is a run of text up to terminal
punctuation that white space, the end of a line or a wide mark follows, or the rest of a line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spark_jobs.compiled import compiled
from spark_jobs.unicode_classes import SPACE, UNSPACED, WORD, unicode_classes
from spark_jobs.utf8 import Bytes, Offsets, code_point, utf8_buffers

MAX_WORD_LENGTH = 1000  # characters
SHORT_LINE = 30  # characters
FOOTNOTES = re.compile(r"\[(?:\d{1,4}|edit|citation needed)\]", re.IGNORECASE)
POLICY = re.compile(
    "javascript|terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", re.IGNORECASE
)
LINE = re.compile(r"\r\n|\n|\r")
# ASCII, CJK full-width, ideographic full stop, Arabic and Urdu, Devanagari danda, Armenian, Ethiopic, Khmer, Myanmar, Tibetan
TERMINAL = ".?!\u3002\uff0e\uff1f\uff01\uff61\u2047\u2048\u2049\u203d\u061f\u06d4\u0964\u0965\u0589\u1362\u1367\u17d4\u104b\u0f0d"
WIDE = "\u3002\uff0e\uff1f\uff01\uff61"  # no space follows these
CLOSING = "\"'\u201d\u2019\u00bb\u203a\u300d\u300f)]\uff09"
ENDS, ELLIPSES, QUOTES = tuple(TERMINAL), ("...", "\u2026"), ('"', "\u201d", "\u300d")
LF, CR = 0x0A, 0x0D


class LineMeasures(NamedTuple):
    """float64[n] each, and 0 where there is nothing to divide by."""

    terminal_line_ratio: NDArray[np.float64]
    short_line_ratio: NDArray[np.float64]  # lines of fewer than SHORT_LINE characters
    line_word_ratio: NDArray[np.float64]  # line breaks per token
    num_sentences: NDArray[np.float64]


def measure(texts: pa.Array) -> LineMeasures:
    marks = (np.array([ord(c) for c in which], np.int64) for which in (TERMINAL, CLOSING, WIDE))
    return LineMeasures(*_measure(*utf8_buffers(texts), unicode_classes(), *marks))


def keep_all_lines(texts: pa.Array, min_words: int) -> pa.Array:
    """`keep_lines` of each text. What few texts hold is looked for in all of them at once first."""
    notes = pc.match_substring(texts, "[").to_pylist()
    policy = pc.match_substring_regex(texts, POLICY.pattern, ignore_case=True).to_pylist()
    kept = [keep_lines(*row, min_words) for row in zip(texts.to_pylist(), notes, policy, strict=True)]
    return pa.array(kept, pa.string())


def keep_lines(text: str, has_notes: bool, has_policy: bool, min_words: int) -> str:
    """The lines that C4 keeps, stripped, joined by LF. Footnote marks are struck out of the kept ones.

    has_notes, has_policy: False if the text certainly holds no "[" or nothing that matches POLICY.
    """
    kept = []
    for raw in LINE.split(text) if "\r" in text else text.split("\n"):
        line = (FOOTNOTES.sub("", raw) if has_notes else raw).strip()
        if (
            ends_sentence(line)
            and num_words(line, min_words) >= min_words
            and (len(line) <= MAX_WORD_LENGTH or max(map(len, line.split())) <= MAX_WORD_LENGTH)
            and not (has_policy and POLICY.search(line))
        ):
            kept.append(line)
    return "\n".join(kept)


def num_words(line: str, enough: int) -> int:
    """Of a line, counted up to `enough`; in scripts without spaces each letter is one."""
    words = len(line.split(None, enough))
    if words >= enough or line.isascii():
        return words
    classes = unicode_classes()
    unspaced = sum(1 for char in line if ord(char) < classes.size and classes[ord(char)] & UNSPACED)
    return max(words, unspaced)


def ends_sentence(line: str) -> bool:
    """Terminal punctuation, perhaps inside quotes or brackets, or a closing quote; but no ellipsis."""
    core = line.rstrip(CLOSING)
    if core.endswith(ELLIPSES):
        return False
    return core.endswith(ENDS) or line.endswith(QUOTES)


def is_placeholder(text: str) -> bool:
    """Lorem ipsum, or a curly bracket: code rather than prose."""
    return "{" in text or "lorem ipsum" in text.lower()


@compiled
def _is_one_of(code: np.int64, marks: NDArray[np.int64]) -> bool:
    for mark in marks:  # noqa: SIM110  numba compiles no generator
        if code == mark:
            return True
    return False


@compiled
def _measure(  # type: ignore[no-untyped-def]
    data: Bytes, offsets: Offsets, classes: NDArray[np.uint8], terminal: NDArray[np.int64], closing: NDArray[np.int64], wide: NDArray[np.int64]
):  # fmt: skip
    """float64[4, n] in the order of LineMeasures."""
    num_texts = offsets.size - 1
    table = np.zeros((4, num_texts), np.float64)
    for text in range(num_texts):
        at, stop = offsets[text], offsets[text + 1]
        lines, terminal_lines, short_lines, breaks, tokens, sentences = 0, 0, 0, 0, 0, 0
        line_chars, inner, token_open, after_cr = 0, 0, False, False
        is_terminal = False  # what stands last in the line, closing marks aside, ends a sentence
        has_words = False  # since the last sentence ended
        while at <= stop:
            if at < stop:
                code, width = code_point(data, at)
                flags = np.int64(classes[code]) if code < classes.size else np.int64(0)
            else:
                code, width, flags = np.int64(LF), 1, np.int64(SPACE)
            if code == LF and after_cr:
                after_cr = False
                at += width
                continue
            after_cr = code == CR
            if flags & SPACE:
                if token_open:
                    tokens += 1
                    token_open = False
                is_break = code in (LF, CR)
                if has_words and (is_terminal or is_break):
                    sentences += 1
                    has_words = False
                if is_break:
                    if at < stop:
                        breaks += 1
                    if line_chars > 0:
                        lines += 1
                        terminal_lines += is_terminal
                        short_lines += line_chars < SHORT_LINE
                    line_chars, inner, is_terminal = 0, 0, False
                elif line_chars > 0:
                    inner += 1
            else:
                token_open = True
                line_chars += 1 + inner
                inner = 0
                if flags & WORD:
                    has_words = True
                if _is_one_of(code, terminal):
                    is_terminal = True
                    if has_words and _is_one_of(code, wide):
                        sentences += 1
                        has_words = False
                elif not _is_one_of(code, closing):
                    is_terminal = False
            at += width
        table[0, text] = terminal_lines / lines if lines else 0.0
        table[1, text] = short_lines / lines if lines else 0.0
        table[2, text] = breaks / tokens if tokens else 0.0
        table[3, text] = sentences
    return table
