"""Two rows with the same labels made one text. For classes of sentences only: spans, pairs and targets cannot be joined.

Mixup, which takes two rows of different labels and trains on both in shares, is not a row that could be written down here: it
is the trainer's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from training.augment.allowed import Row, changed_columns
from training.augment.draws import chosen, number
from training.augment.edits import word_ranges
from training.augment.made import NotMade, Result, made_row, wanted
from training.augment_spec import MixingSpec

WINDOW = 64  # rows of a class that are held at once; a row's partners are among the next as many of its class


def mix_rows(read: Callable[[], Iterator[Row]], task: str, spec: MixingSpec, seed: int) -> Iterator[Result]:
    """A chosen row with `spec.copies` different rows of its labels, in the order of the second of each pair.

    Ids are hashes of content, so the rows that follow one in order of id are as good as drawn; the last of a class are
    followed by its first. `read` gives the training rows in order of id; it is called twice, to count the classes first.
    """
    changed_columns(task, spec.kind)
    sizes = Counter(_labels(row) for row in read() if _mixes(row, spec))
    seen: Counter[tuple[str, ...]] = Counter()
    firsts: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    waiting: dict[tuple[tuple[str, ...], int], list[tuple[Row, int]]] = defaultdict(list)
    for row in read():
        if not wanted(row, spec):
            continue
        is_chosen = chosen(spec.share, seed, spec.kind, row["id"])
        if not _mixes(row, spec):
            yield from [NotMade("not_one_text")] * (spec.copies * is_chosen)
            continue
        labels = _labels(row)
        place, size = seen[labels], sizes[labels]
        seen[labels] += 1
        for first, copy in waiting.pop((labels, place), ()):
            yield mixed(first, row, task, spec, copy)
        if place < WINDOW:
            firsts[labels].append(row)
        for copy in range(spec.copies * is_chosen):
            num_partners = min(WINDOW, size - 1)
            if copy >= num_partners:
                yield NotMade("no_partner")
                continue
            partner = place + 1 + (number(seed, spec.kind, row["id"]) + copy) % num_partners
            if partner < size:
                waiting[labels, partner].append((row, copy))
            else:
                yield mixed(row, firsts[labels][partner - size], task, spec, copy)


def mixed(first: Row, second: Row, task: str, spec: MixingSpec, copy: int) -> Result:
    text = (joined if spec.how == "concatenate" else crossed)(first["text"], second["text"])
    return made_row(first, task, spec.kind, copy, {"text": text})


def joined(first: str, second: str) -> str:
    return f"{first.rstrip()} {second.lstrip()}"


def crossed(first: str, second: str) -> str:
    """The first half of the words of one, rounded up, and the second half of the other's, with what stands between them."""
    words, others = word_ranges(first), word_ranges(second)
    end = words[(len(words) - 1) // 2][1] if words else len(first)
    start = others[len(others) // 2][0] if others else 0
    return joined(first[:end], second[start:])


def _mixes(row: Row, spec: MixingSpec) -> bool:
    return wanted(row, spec) and row["text"] is not None and row["pair"] is None


def _labels(row: Row) -> tuple[str, ...]:
    labels: list[Any] = sorted(row["labels"] or ())
    return tuple(labels)
