"""Score texts by a linear model over hashed word n-grams. Needs neither Spark nor scikit-learn.

 word    of words.py, as it is written: case is kept
 bucket  (hash of an n-gram of 1 to `ngram` words) mod `num_features`
 text    the set of its buckets; each counts 1 / sqrt(size of the set), so that long texts do not weigh more (L2 norm)
 score   1 / (1 + exp(-(bias + sum of the weights of the buckets / sqrt(size)))), kept to four digits

Hashed features: Weinberger et al. 2009, arXiv:0902.2206. A text without words has the score of the bias alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.compiled import compiled
from spark_jobs.errors import DataError
from spark_jobs.manifests import QualityClassifier
from spark_jobs.unicode_classes import unicode_classes
from spark_jobs.utf8 import Bytes, Offsets, utf8_buffers
from spark_jobs.words import cut_words, extend

FEATURES = "word-ngrams-1"  # version of words, hashes and buckets: part of every model
DIGITS = 4
WEIGHTS, SETTINGS = "weights.npy", "model.json"

Floats = NDArray[np.float64]
Buckets = NDArray[np.int32]


class QualityModel(NamedTuple):
    """weights: float32[num_features]."""

    weights: NDArray[np.float32]
    bias: float
    ngram: int

    def score(self, texts: pa.Array) -> Floats:
        """float64[n] in [0, 1]: how likely each text is of the good kind, if both kinds were equally frequent."""
        return np.round(1.0 / (1.0 + np.exp(-self.margins(texts))), DIGITS)

    def margins(self, texts: pa.Array) -> Floats:
        """float64[n]: log-odds of the good kind. No nulls in `texts`."""
        data, offsets = utf8_buffers(texts)
        return _margins(data, offsets, unicode_classes(), self.weights, self.bias, self.ngram)  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        np.save(folder / WEIGHTS, self.weights, allow_pickle=False)
        settings = {
            "features": FEATURES, "ngram": self.ngram, "num_features": len(self.weights), "bias": self.bias,
        }  # fmt: skip
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")


def load_model(classifier: QualityClassifier) -> QualityModel:
    """Raises: DataError if the model was made with other features than these."""
    folder = Path(classifier.folder())
    settings = json.loads((folder / SETTINGS).read_text())
    weights = np.load(folder / WEIGHTS, allow_pickle=False)
    if settings["features"] != FEATURES or weights.shape != (settings["num_features"],):
        raise DataError(
            f"{folder}: features {settings['features']!r}, weights {weights.shape}; wanted {FEATURES!r} and "
            f"({settings['num_features']},); delete {classifier.uri} and run step {classifier.step} again"
        )
    return QualityModel(weights, float(settings["bias"]), int(settings["ngram"]))


def buckets_of(texts: pa.Array, num_features: int, ngram: int) -> tuple[Buckets, Offsets]:
    """(distinct buckets of each text in the order they come, int32; offsets int64[n + 1]). No nulls in `texts`."""
    data, offsets = utf8_buffers(texts)
    return _buckets(data, offsets, unicode_classes(), num_features, ngram)  # type: ignore[no-any-return]


@compiled
def _text_buckets(  # type: ignore[no-untyped-def]
    hashes, num_words: int, num_features: int, ngram: int, stamps: Offsets, stamp: int, found: Buckets
) -> int:
    """Fill `found` with the buckets of a text's words; returns how many. `stamps` says which text saw a bucket last."""
    count, size = 0, np.uint64(num_features)
    for first in range(num_words):
        h = np.uint64(0)
        for place in range(first, min(first + ngram, num_words)):
            h = extend(h, hashes[place])
            bucket = np.int64(h % size)
            if stamps[bucket] != stamp:
                stamps[bucket] = stamp
                found[count] = bucket
                count += 1
    return count


@compiled
def _longest(offsets: Offsets) -> int:
    longest = np.int64(0)
    for text in range(offsets.size - 1):
        longest = max(longest, offsets[text + 1] - offsets[text])
    return longest + 1  # type: ignore[return-value]


@compiled
def _margins(  # type: ignore[no-untyped-def]
    data: Bytes, offsets: Offsets, classes: NDArray[np.uint8], weights: NDArray[np.float32], bias: float, ngram: int
):
    num_texts, longest = offsets.size - 1, _longest(offsets)
    hashes, letters = np.empty(longest, np.uint64), np.empty(longest, np.bool_)
    starts, stops = np.empty(longest, np.int64), np.empty(longest, np.int64)
    stamps, found = np.zeros(weights.size, np.int64), np.empty(weights.size, np.int32)
    margins = np.empty(num_texts, np.float64)
    for text in range(num_texts):
        num_words = cut_words(data, offsets[text], offsets[text + 1], classes, hashes, starts, stops, letters)
        count = _text_buckets(hashes, num_words, weights.size, ngram, stamps, text + 1, found)
        total = 0.0
        for place in range(count):
            total += weights[found[place]]
        margins[text] = bias + (total / np.sqrt(np.float64(count)) if count else 0.0)
    return margins


@compiled
def _buckets(  # type: ignore[no-untyped-def]
    data: Bytes, offsets: Offsets, classes: NDArray[np.uint8], num_features: int, ngram: int
):
    num_texts, longest = offsets.size - 1, _longest(offsets)
    hashes, letters = np.empty(longest, np.uint64), np.empty(longest, np.bool_)
    starts, stops = np.empty(longest, np.int64), np.empty(longest, np.int64)
    stamps, found = np.zeros(num_features, np.int64), np.empty(num_features, np.int32)
    ends = np.zeros(num_texts + 1, np.int64)
    out = np.empty(1 << 16, np.int32)
    for text in range(num_texts):
        num_words = cut_words(data, offsets[text], offsets[text + 1], classes, hashes, starts, stops, letters)
        count = _text_buckets(hashes, num_words, num_features, ngram, stamps, text + 1, found)
        first = ends[text]
        if first + count > out.size:
            grown = np.empty(2 * (first + count), np.int32)
            grown[:first] = out[:first]
            out = grown
        out[first : first + count] = found[:count]
        ends[text + 1] = first + count
    return out[: ends[-1]], ends
