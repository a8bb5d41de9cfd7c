"""Round trips through another language: the text comes back in other words.

Sources: Sennrich et al., arXiv:1511.06709; with sampling, for classes, Xie et al., arXiv:1904.12848.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from training.augment.allowed import Row, changed_columns, key_of
from training.augment.draws import chosen, number
from training.augment.made import NotMade, Result, made_row, wanted
from training.augment.translator import Limits, Translator, Untranslated
from training.augment_spec import BackTranslationSpec

BLOCK_ROWS = 1024  # rows sorted by length and translated together


@dataclass(frozen=True)
class Copy:
    """A row to be put into other words, and the place of its texts in the list of all texts of its block."""

    row: Row
    number: int
    first_text: int


def back_translate(
    rows: Iterator[Row], task: str, spec: BackTranslationSpec, seed: int, forward: Translator, backward: Translator
) -> Iterator[Result]:
    """Each chosen row `spec.copies` times, in the order of the rows. A round trip of no use is not made, with its reason:
    empty, unchanged (but for case and white space), length, too_long, unfinished."""
    columns = changed_columns(task, spec.kind)
    while block := list(itertools.islice(rows, BLOCK_ROWS)):
        copies: list[Copy] = []
        texts: list[str] = []
        seeds: list[int] = []
        for row in block:
            key = key_of(row, task)
            if not (wanted(row, spec) and chosen(spec.share, seed, spec.kind, key)):
                continue
            for copy in range(spec.copies):
                copies.append(Copy(row, copy, len(texts)))
                present = [column for column in columns if row[column] is not None]
                texts += [row[column] for column in present]
                seeds += [number(seed, spec.kind, key, copy, column) for column in present]
        trips = round_trips(texts, seeds, spec, forward, backward)
        yield from (_made(copy, columns, task, spec, trips) for copy in copies)


def round_trips(
    texts: list[str], seeds: list[int], spec: BackTranslationSpec, forward: Translator, backward: Translator
) -> list[str | Untranslated]:
    """What comes back of each text."""
    limits = Limits(spec.temperature, spec.max_new_tokens, spec.batch_rows)
    there = forward.translate(texts, seeds, limits)
    arrived = [i for i, text in enumerate(there) if isinstance(text, str) and text]
    back = backward.translate([str(there[i]) for i in arrived], [number(seeds[i], "back") for i in arrived], limits)
    trips: list[str | Untranslated] = [text if isinstance(text, Untranslated) else "" for text in there]
    for i, text in zip(arrived, back, strict=True):
        trips[i] = text
    return trips


def _made(
    copy: Copy, columns: tuple[str, ...], task: str, spec: BackTranslationSpec, trips: list[str | Untranslated]
) -> Result:
    changes: dict[str, str] = {}
    present = [column for column in columns if copy.row[column] is not None]
    for place, column in enumerate(present, copy.first_text):
        before, after = copy.row[column], trips[place]
        if isinstance(after, Untranslated):
            return NotMade(after.reason)
        if not after:
            return NotMade("empty")
        if not spec.min_ratio <= len(after) / max(1, len(before)) <= spec.max_ratio:
            return NotMade("length")
        changes[column] = before if _bare(before) == _bare(after) else after
    return made_row(copy.row, task, spec.kind, copy.number, changes)


def _bare(text: str) -> str:
    return " ".join(text.casefold().split())
