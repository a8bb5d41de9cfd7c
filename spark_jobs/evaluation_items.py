"""Items of evaluation sets as n-grams to look for in documents, and the search. No Spark.

An item's features are the `ngram`-grams of its texts (never across two of its fields). An item without a text that long has
one feature: its longest text whole, if that has `min_item_words` words. A feature must hold a letter, or every table of
numbers would match; one that more than `max_items` items share is a template and is left out.

Texts are normalised as for duplicates (minhash.normalised) and cut into words by words.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.compiled import compiled
from spark_jobs.evaluation_sets import Item
from spark_jobs.minhash import normalised
from spark_jobs.specs import DecontaminateSpec
from spark_jobs.unicode_classes import unicode_classes
from spark_jobs.utf8 import Bytes, Offsets, utf8_buffers
from spark_jobs.words import cut_words, extend, words_of

FILTER_BITS = 22  # one byte for each value of so many low bits of a hash: most n-grams are dismissed by one look


class Features(NamedTuple):
    """Sorted hashes, and for each the items that have it: items[starts[f]:starts[f + 1]]."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    items: NDArray[np.int64]
    lengths: NDArray[np.bool_]  # [n]: some feature has n words
    names: list[str]


def features_of(items: list[Item], spec: DecontaminateSpec) -> Features:
    hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    lengths = np.zeros(spec.ngram + 1, np.bool_)
    for number, item in enumerate(items):
        for length, found in _features(item, spec):
            lengths[length] = True
            hashes.append(found)
            owners.append(np.full(len(found), number))
    grams, items_of = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((items_of, grams))
    grams, items_of = grams[order], items_of[order]
    is_new = np.append(True, (grams[1:] != grams[:-1]) | (items_of[1:] != items_of[:-1]))[: len(grams)]
    grams, items_of = grams[is_new], items_of[is_new]
    keys, counts = np.unique(grams, return_counts=True)
    kept = counts <= spec.max_items
    borders = np.concatenate(([0], np.cumsum(counts[kept]))).astype(np.int64)
    return Features(keys[kept], borders, items_of[np.repeat(kept, counts)], lengths, [item.name for item in items])


def _features(item: Item, spec: DecontaminateSpec) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    texts = [words_of(normalised(text)) for text in item.texts]
    longest = max(texts, key=lambda words: len(words[0]), default=None)
    if longest is None or len(longest[0]) < spec.min_item_words:
        return
    if len(longest[0]) < spec.ngram:
        texts, length = [longest], len(longest[0])
    else:
        length = spec.ngram
    for hashes, _, _, letters in texts:
        if len(hashes) >= length:
            grams = _ngrams(hashes, length)
            has_letter = np.convolve(letters, np.ones(length), mode="valid") > 0
            yield length, grams[has_letter]


@compiled
def _ngrams(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    grams = np.empty(words.size - n + 1, np.uint64)
    for first in range(grams.size):
        h = np.uint64(0)
        for place in range(first, first + n):
            h = extend(h, words[place])
        grams[first] = h
    return grams


class Searcher:
    """Finds the features in texts. Cheap to pickle, the filter is made where it is used."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._filter: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"features": self.features, "_filter": None}

    def find(self, texts: pa.Array) -> list[NDArray[np.int64]]:
        """Numbers of the features in each text, ascending, each once."""
        if self._filter is None:
            self._filter = np.zeros(1 << FILTER_BITS, np.uint8)
            self._filter[self.features.hashes & np.uint64((1 << FILTER_BITS) - 1)] = 1
        normals = pa.array([normalised(text) for text in texts.to_pylist()], pa.string())
        data, offsets = utf8_buffers(normals)
        found, ends = _find(data, offsets, unicode_classes(), self.features.hashes, self.features.lengths, self._filter)
        return [np.unique(found[first:stop]) for first, stop in pairwise(ends)]


@compiled
def _find(  # type: ignore[no-untyped-def]
    data: Bytes, offsets: Offsets, classes: NDArray[np.uint8], hashes, lengths, look
):
    num_texts = offsets.size - 1
    longest = 1
    for text in range(num_texts):
        longest = max(longest, offsets[text + 1] - offsets[text] + 1)
    words = np.empty(longest, np.uint64)
    starts, stops = np.empty(longest, np.int64), np.empty(longest, np.int64)
    letters = np.empty(longest, np.bool_)
    found = np.empty(64, np.int64)
    size = 0
    ends = np.zeros(num_texts + 1, np.int64)
    low_bits = np.uint64(look.size - 1)
    for text in range(num_texts):
        count = cut_words(data, offsets[text], offsets[text + 1], classes, words, starts, stops, letters)
        for first in range(count):
            h = np.uint64(0)
            for length in range(1, min(lengths.size - 1, count - first) + 1):
                h = extend(h, words[first + length - 1])
                if lengths[length] and look[np.int64(h & low_bits)]:
                    place = np.searchsorted(hashes, h)
                    if place < hashes.size and hashes[place] == h:
                        if size == found.size:
                            larger = np.empty(2 * size, np.int64)
                            larger[:size] = found
                            found = larger
                        found[size] = place
                        size += 1
        ends[text + 1] = size
    return found[:size].copy(), ends


def worst_item(
    found: NDArray[np.int64], features: Features, is_common: NDArray[np.bool_], sizes: NDArray[np.int64]
) -> tuple[int, float]:
    """(item, share of its features found) of the item found most wholly, common features aside; (-1, 0.0) for none.

    sizes: of `item_sizes`.
    """
    rare = found[~is_common[found]]
    if not len(rare):
        return -1, 0.0
    items = np.concatenate([features.items[features.starts[f] : features.starts[f + 1]] for f in rare])
    numbers, hits = np.unique(items, return_counts=True)
    shares = hits / sizes[numbers]
    best = int(np.argmax(shares))
    return int(numbers[best]), float(shares[best])


def item_sizes(features: Features, is_common: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Features of each item that are not common."""
    counted = np.repeat(~is_common, np.diff(features.starts))
    return np.bincount(features.items[counted], minlength=len(features.names))
