"""Kernels of the cleaning step: text normalisation, and what the Gopher quality rules measure. No Spark.

Normalisation, in this order (applying it twice changes nothing):
 1. CR LF and CR become LF. The control characters that separate (VT, FF, FS, GS, RS, US, NEL) become a space; every other
    control character but LF and TAB is removed, and so are byte-order marks.
 2. Unicode NFC.
 3. Spaces and tabs at the end of a line are removed, more than two LF in a row become two, and a text neither begins with an
    empty line nor ends with white space.

Words, in the rules: a token is a maximal run of characters that are not white space; a word is a token with at least one
letter, digit or mark (Gopher's "non-symbol words"). In scripts written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar)
each letter with its marks is a token and a word, and symbols beside it belong to it: 50 words are then some 30 of Chinese or
12 of Thai, which no dictionary has to agree with. Their lengths say nothing and are left out of the mean; where they are the
majority of a text's words, the rules on word length do not apply. A Hangul syllable, written of two or three letters, counts
as two characters of a word. Lines end at CR LF, LF or CR only; they are stripped, empty ones do not count.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from spark_jobs.compiled import compiled
from spark_jobs.unicode_classes import LETTER, MARK, SPACE, UNSPACED, WORD, unicode_classes
from spark_jobs.utf8 import Bytes, Offsets, code_point, utf8_array, utf8_buffers

TAB, LF, CR, BLANK, DELETE = 0x09, 0x0A, 0x0D, 0x20, 0x7F

# Characters that open a bullet line, as code points: - * bullet, triangular, white, black square, white square, hyphen, circles
BULLETS = np.array([0x2D, 0x2A, 0x2022, 0x2023, 0x25E6, 0x25AA, 0x25AB, 0x2043, 0x25CF, 0x25CB, 0x25A0], np.int64)
HASH, FULL_STOP, ELLIPSIS = 0x23, 0x2E, 0x2026
HANGUL_FIRST, HANGUL_LAST = 0xAC00, 0xD7A3

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class Measures(NamedTuple):
    """What the quality rules need to know of each text; float64[n] each, and 0 where there is nothing to divide by."""

    num_words: NDArray[np.float64]
    mean_word_length: NDArray[np.float64]  # characters, of words between spaces
    symbol_word_ratio: NDArray[np.float64]  # '#' per token or ellipses per token, whichever is more
    bullet_line_ratio: NDArray[np.float64]
    ellipsis_line_ratio: NDArray[np.float64]
    alpha_word_ratio: NDArray[np.float64]  # tokens with a letter, of all tokens
    num_stop_words: NDArray[np.float64]  # different ones, any case
    unspaced_word_ratio: NDArray[np.float64]  # words that are one letter of a script without spaces, of all words


def normalise(texts: pa.Array) -> pa.Array:
    """Apply the policy above to a string column without nulls."""
    data, offsets, has_wide = _remove_controls(*utf8_buffers(texts))
    array = utf8_array(data[: offsets[-1]], offsets)
    if has_wide.any():
        wide = pa.array(has_wide)
        array = pc.replace_with_mask(array, wide, _nfc(array.filter(wide)))
    data, offsets = _tidy_white_space(*utf8_buffers(array))
    return utf8_array(data[: offsets[-1]], offsets)


def _nfc(texts: pa.Array) -> pa.Array:
    # not pyarrow's utf8_normalize: its "NFC" of pyarrow 25 leaves e + U+0301 apart
    return pa.array([unicodedata.normalize("NFC", text) for text in texts.to_pylist()], pa.string())


def measure(texts: pa.Array) -> Measures:
    table = _measure(*utf8_buffers(texts), unicode_classes(), BULLETS)
    return Measures(*table)


@compiled
def _remove_controls(data: Bytes, offsets: Offsets):  # type: ignore[no-untyped-def]
    """Step 1. Returns (bytes, offsets, has_wide bool[n]: the text holds a byte above 7F)."""
    num_texts = offsets.size - 1
    out = np.empty(max(offsets[-1] - offsets[0], 1), np.uint8)
    ends = np.zeros(num_texts + 1, np.int64)
    has_wide = np.zeros(num_texts, np.bool_)
    size = 0
    for text in range(num_texts):
        at, stop, after_cr = offsets[text], offsets[text + 1], False
        while at < stop:
            byte = data[at]
            if byte >= 0x20 and byte < DELETE:
                out[size] = byte
                size += 1
                after_cr = False
            elif byte >= 0x80:
                if byte == 0xC2 and data[at + 1] < 0xA0:  # C1 controls; NEL is C2 85
                    if data[at + 1] == 0x85:
                        out[size] = BLANK
                        size += 1
                        after_cr = False
                    at += 1
                elif byte == 0xEF and data[at + 1] == 0xBB and data[at + 2] == 0xBF:
                    at += 2
                else:
                    has_wide[text] = True
                    out[size] = byte
                    size += 1
                    after_cr = False
            elif byte in (LF, CR):
                if not (byte == LF and after_cr):
                    out[size] = LF
                    size += 1
                after_cr = byte == CR
            elif byte == TAB or byte == 0x0B or byte == 0x0C or (byte >= 0x1C and byte <= 0x1F):
                out[size] = TAB if byte == TAB else BLANK
                size += 1
                after_cr = False
            at += 1
        ends[text + 1] = size
    return out, ends, has_wide


@compiled
def _tidy_white_space(data: Bytes, offsets: Offsets):  # type: ignore[no-untyped-def]
    """Step 3. Returns (bytes, offsets)."""
    num_texts = offsets.size - 1
    out = np.empty(max(offsets[-1] - offsets[0], 1), np.uint8)
    ends = np.zeros(num_texts + 1, np.int64)
    size = 0
    for text in range(num_texts):
        begin = size
        for at in range(offsets[text], offsets[text + 1]):
            byte = data[at]
            if byte == LF:
                while size > begin and (out[size - 1] == BLANK or out[size - 1] == TAB):
                    size -= 1
                if size == begin or (size - begin >= 2 and out[size - 1] == LF and out[size - 2] == LF):
                    continue
            out[size] = byte
            size += 1
        while size > begin and (out[size - 1] == BLANK or out[size - 1] == TAB or out[size - 1] == LF):
            size -= 1
        ends[text + 1] = size
    return out, ends


@compiled
def _class_of(code: np.int64, classes: NDArray[np.uint8]) -> np.int64:
    return np.int64(classes[code]) if code < classes.size else np.int64(0)


@compiled
def _stop_word(data: Bytes, start: int, stop: int) -> int:
    """Bit of the stop word that these bytes spell in any case, 0 for none."""
    size = stop - start
    if size < 2 or size > 4:
        return 0
    word = np.int64(0)
    for at in range(start, stop):
        word = (word << 8) | np.int64(data[at] | 0x20)
    if word == 0x746865:  # the
        return 1
    if word == 0x6265:  # be
        return 2
    if word == 0x746F:  # to
        return 4
    if word == 0x6F66:  # of
        return 8
    if word == 0x616E64:  # and
        return 16
    if word == 0x74686174:  # that
        return 32
    if word == 0x68617665:  # have
        return 64
    return 128 if word == 0x77697468 else 0  # with


@compiled
def _measure(data: Bytes, offsets: Offsets, classes: NDArray[np.uint8], bullets: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    """float64[8, n] in the order of Measures."""
    num_texts = offsets.size - 1
    table = np.zeros((8, num_texts), np.float64)
    for text in range(num_texts):
        at, stop = offsets[text], offsets[text + 1]
        tokens, words, word_chars, alpha_tokens, stop_words, unspaced = 0, 0, 0, 0, 0, 0
        hashes, ellipses, dots = 0, 0, 0
        lines, bullet_lines, ellipsis_lines = 0, 0, 0
        token_chars, token_flags = 0, np.int64(0)
        core_start, core_stop = -1, -1  # bytes from the first to the last letter, digit or mark of the token
        after_unspaced = False  # the last character that is not part of the open token is of a script without spaces
        line_open, line_dots, line_end_code = False, 0, np.int64(0)
        while at <= stop:
            if at < stop:
                code, width = code_point(data, at)
                flags = _class_of(code, classes)
            else:
                code, width, flags = np.int64(LF), 1, np.int64(SPACE)  # the end closes the last token and line
            if code == HASH:
                hashes += 1
            dots = dots + 1 if code == FULL_STOP else 0
            if code == ELLIPSIS or (dots > 0 and dots % 3 == 0):
                ellipses += 1
            is_unspaced = flags & UNSPACED and flags & WORD
            if flags & SPACE or is_unspaced:
                if token_chars > 0 and (token_flags & WORD or not (after_unspaced or is_unspaced)):
                    tokens += 1
                    if token_flags & LETTER:
                        alpha_tokens += 1
                    if token_flags & WORD:
                        words += 1
                        word_chars += token_chars
                        stop_words |= _stop_word(data, core_start, core_stop)
                token_chars, token_flags, core_start = 0, np.int64(0), -1
                after_unspaced = is_unspaced != 0
            if is_unspaced:
                if not flags & MARK:
                    tokens += 1
                    unspaced += 1
                    if flags & LETTER:
                        alpha_tokens += 1
            elif flags & SPACE:
                if code in (LF, CR) and line_open:
                    lines += 1
                    if line_end_code == ELLIPSIS or line_dots >= 3:
                        ellipsis_lines += 1
                    line_open = False
            else:
                token_chars += 2 if code >= HANGUL_FIRST and code <= HANGUL_LAST else 1
                token_flags |= flags
                if flags & WORD:
                    if core_start < 0:
                        core_start = at
                    core_stop = at + width
            if not flags & SPACE:
                if not line_open:
                    line_open, line_dots = True, 0
                    for bullet in bullets:
                        if code == bullet:
                            bullet_lines += 1
                            break
                line_end_code = code
                line_dots = dots
            at += width
        table[0, text] = words + unspaced
        table[1, text] = word_chars / words if words else 0.0
        table[2, text] = max(hashes, ellipses) / tokens if tokens else 0.0
        table[3, text] = bullet_lines / lines if lines else 0.0
        table[4, text] = ellipsis_lines / lines if lines else 0.0
        table[5, text] = alpha_tokens / tokens if tokens else 0.0
        count = 0
        while stop_words:
            count += stop_words & 1
            stop_words >>= 1
        table[6, text] = count
        table[7, text] = unspaced / (words + unspaced) if unspaced else 0.0
    return table
