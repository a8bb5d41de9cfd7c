"""One byte of facts about each code point, as a table that compiled kernels can index."""

from __future__ import annotations

import sys
import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

SPACE, LETTER, WORD, UNSPACED, MARK = 1, 2, 4, 8, 16

# Above this only private-use and unassigned code points follow (Unicode 17 ends its ideographs at 33479), plus tags.
TABLE_SIZE = 0x33480

# First and last code point of the scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
UNSPACED_RANGES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0x20000, 0x3347F),
)  # fmt: skip


@cache
def unicode_classes() -> NDArray[np.uint8]:
    """uint8[TABLE_SIZE] of flags: SPACE (white space), LETTER (category L), WORD (L, N or M: the marks of Hindi and
    Thai are parts of words), MARK (category M), UNSPACED (script without spaces). By the Unicode tables of this Python.
    """
    table = np.zeros(TABLE_SIZE, np.uint8)
    for code in range(TABLE_SIZE):
        char = chr(code)
        category = unicodedata.category(char)[0]
        if category == "L":
            table[code] = LETTER | WORD
        elif category in "NM":
            table[code] = WORD | MARK if category == "M" else WORD
        elif char.isspace() and not 0x1C <= code <= 0x1F:  # Python alone counts these four separators as spaces
            table[code] = SPACE
    for first, last in UNSPACED_RANGES:
        table[first : last + 1] |= UNSPACED
    assert sys.maxunicode > TABLE_SIZE
    return table
