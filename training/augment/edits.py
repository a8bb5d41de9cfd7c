"""Words of a text changed in place: everything between them stays, and spans still mark the same characters.

A change is told as a list as long as the words, with the new string of each, None for a word left out. Words that touch a
protected span are never changed, so a span moves as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+(?:[-'’]\w+)*")

Range = tuple[int, int]  # characters [start, end)
NewWords = list[str | None]


def word_ranges(text: str) -> list[Range]:
    """Runs of letters and digits, with hyphens and apostrophes inside them. Scripts without spaces give long words."""
    return [match.span() for match in WORD.finditer(text)]


def is_free(word: Range, protected: Sequence[Range]) -> bool:
    return all(word[1] <= start or end <= word[0] for start, end in protected)


def rewritten(text: str, words: Sequence[Range], new: NewWords, protected: Sequence[Range]) -> tuple[str, list[Range]]:
    """The text with its new words, and where the protected ranges are in it.

    With a word left out goes the white space before it; for the first one, the white space behind it.
    """
    edits = _edits(text, words, new, protected)
    pieces, at = [], 0
    for start, end, replacement in edits:
        pieces += [text[at:start], replacement]
        at = end
    pieces.append(text[at:])
    return "".join(pieces), [moved(span, edits) for span in protected]


def _edits(text: str, words: Sequence[Range], new: NewWords, protected: Sequence[Range]) -> list[tuple[int, int, str]]:
    edits: list[tuple[int, int, str]] = []
    for (start, end), replacement in zip(words, new, strict=True):
        if replacement == text[start:end]:
            continue
        done = edits[-1][1] if edits else 0
        if replacement is None:
            floor = max([done, *(stop for _, stop in protected if stop <= start)])
            before = start
            while before > floor and text[before - 1].isspace():
                before -= 1
            if before == 0 or (before == done and edits and edits[-1][0] == 0 and not edits[-1][2]):
                ceiling = min([len(text), *(begin for begin, _ in protected if begin >= end)])
                while end < ceiling and text[end].isspace():
                    end += 1
            start = before
        edits.append((start, end, replacement or ""))
    return edits


def moved(span: Range, edits: Sequence[tuple[int, int, str]]) -> Range:
    """Where a range lies after edits that do not overlap it."""
    shift = sum(len(new) - (end - start) for start, end, new in edits if end <= span[0])
    return span[0] + shift, span[1] + shift
