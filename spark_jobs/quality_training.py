"""Train the quality classifier: logistic regression that tells the texts of one folder from those of another.

A text is a .txt or .md file, or the text column of a line of JSON. Texts are cleaned as documents are, then become the features
of quality_model.py. Of each folder the fifth with the lowest hashes is held out and never learned from: it says how well the
model does. Same files, same bytes: texts are ordered by their hash, and all arithmetic is done by one thread.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from spark_jobs.cleaned_text import clean_texts
from spark_jobs.errors import DataError
from spark_jobs.job import Job
from spark_jobs.quality_folders import digest_of, files_of, kind_of
from spark_jobs.quality_model import QualityModel, buckets_of
from spark_jobs.readers import END, Unit, read_unit
from spark_jobs.requests import Outcome
from spark_jobs.specs import C4Spec, ClassifierJobSpec, CleanSpec, SourceSpec

MAX_TEXT_BYTES = 64 << 20
MIN_TEXTS = 20  # of each folder; below it nothing can be said about texts held out
HELDOUT_SHARE = 5  # one in five
CHANCE_ERRORS = 2.0  # standard errors by which the AUC must beat that of chance
INVERSE_PENALTY = 10.0  # C of scikit-learn
MAX_ITERATIONS = 1000
BATCH_BYTES = 8 << 20

Sample = list[tuple[int, str]]  # (hash of the text, text), ascending


class Split(NamedTuple):
    train: list[str]
    heldout: list[str]


def train_classifier(job: Job, spec: ClassifierJobSpec) -> Outcome:
    """Writes data/: weights.npy float32[num_features], model.json.

    Raises: DataError if a folder holds too few texts or one that cannot be read, if it was changed since the step was named, or
    if the classifier, asked about texts held out, is no better than chance; RequestError if a folder has no file.
    """
    _require_same_files(spec)
    good, bad = _splits(spec)
    model = fit(good.train, bad.train, spec)
    auc, accuracy = _heldout_scores(model, good, bad, spec)
    model.save(job.out / "data")
    fields = {
        "num_good": len(good.train) + len(good.heldout), "num_bad": len(bad.train) + len(bad.heldout),
        "num_heldout": len(good.heldout) + len(bad.heldout), "auc": round(auc, 4), "accuracy": round(accuracy, 4),
    }  # fmt: skip
    return Outcome(num_rows=spec.num_features, format="npy", fields=fields)


def _require_same_files(spec: ClassifierJobSpec) -> None:
    for role, digest in spec.digests.items():
        path = getattr(spec, role)
        if digest_of(role, path) != digest:
            raise DataError(
                f"clean.classifier.{role}={path!r}: its files changed while the night ran; run it again when they are at rest"
            )


def _splits(spec: ClassifierJobSpec) -> tuple[Split, Split]:
    """Texts that both folders hold teach nothing and are left out."""
    samples = {
        role: sample(read_texts(role, path, spec.text_column), spec.max_train_bytes)
        for role, path in (("good", spec.good), ("bad", spec.bad))
    }
    both = {h for h, _ in samples["good"]} & {h for h, _ in samples["bad"]}
    good, bad = (
        _split(role, [text for h, text in found if h not in both], len(both), spec) for role, found in samples.items()
    )
    return good, bad


def _split(role: str, texts: list[str], num_in_both: int, spec: ClassifierJobSpec) -> Split:
    if len(texts) < MIN_TEXTS:
        besides = f" besides {num_in_both} that the other folder holds too" if num_in_both else ""
        raise DataError(
            f"clean.classifier.{role}={getattr(spec, role)!r}: {len(texts)} different texts{besides}; wanted {MIN_TEXTS} at least; "
            f"add examples of {role} text"
        )
    texts = cleaned(texts, spec)
    num_heldout = len(texts) // HELDOUT_SHARE
    return Split(texts[num_heldout:], texts[:num_heldout])


def read_texts(role: str, path: str, text_column: str) -> Iterator[str]:
    """Texts of a folder that are not empty. Raises: DataError naming file and place of one that cannot be read."""
    for file in files_of(role, path):
        kind: Any = "jsonl" if kind_of(file) == ".jsonl" else "text"
        source = SourceSpec(kind=kind, path=str(file), text_column=text_column)
        for record in read_unit(source, Unit("", 0, END), MAX_TEXT_BYTES):
            if record.text is None:
                raise DataError(
                    f"clean.classifier.{role}: {file.parent}/{record.origin}: {record.reason} ({record.detail}); "
                    "mend the file, or take it out of the folder"
                )
            if record.text.strip():
                yield record.text


def sample(texts: Iterable[str], max_bytes: int) -> Sample:
    """Different texts by ascending hash until `max_bytes` of UTF-8 are reached; at least one, if there is any.

    A random sample, because hashes are; and the same one in whatever order the texts come.
    """
    kept: list[tuple[int, str]] = []  # a heap whose first has the greatest hash
    hashes: set[int] = set()
    size, limit = 0, 1 << 128  # the least hash that was dropped: nothing from there on comes back, however short
    for text in texts:
        encoded = text.encode()
        h = xxhash.xxh3_128_intdigest(encoded)
        if h >= limit or h in hashes:
            continue
        heapq.heappush(kept, (-h, text))
        hashes.add(h)
        size += len(encoded)
        while size > max_bytes and len(kept) > 1:
            negative, dropped = heapq.heappop(kept)
            limit = -negative
            hashes.remove(limit)
            size -= len(dropped.encode())
    return sorted((-negative, text) for negative, text in kept)


def cleaned(texts: list[str], spec: ClassifierJobSpec) -> list[str]:
    """As the step `clean` leaves documents."""
    c4 = None if spec.min_words_a_line is None else C4Spec(min_words_a_line=spec.min_words_a_line)
    as_documents = CleanSpec(fix_mojibake=spec.fix_mojibake, mask_pii=spec.mask_pii, c4=c4)
    return [text for batch in _batches(texts) for text in clean_texts(batch, as_documents).texts.to_pylist()]


def _batches(texts: list[str]) -> Iterator[pa.Array]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield pa.array(batch, pa.string())
            batch, size = [], 0
    if batch:
        yield pa.array(batch, pa.string())


def fit(good: list[str], bad: list[str], spec: ClassifierJobSpec) -> QualityModel:
    """Logistic regression with an L2 penalty, both kinds weighing the same however many texts they have."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    features = _matrix([*good, *bad], spec)
    is_good = np.repeat([1, 0], [len(good), len(bad)])
    with threadpool_limits(limits=1):  # sums of several threads are added in the order they happen to end
        regression = LogisticRegression(
            C=INVERSE_PENALTY, class_weight="balanced", solver="lbfgs", max_iter=MAX_ITERATIONS
        )
        regression.fit(features, is_good)
    return QualityModel(regression.coef_[0].astype(np.float32), float(regression.intercept_[0]), spec.ngram)


def _matrix(texts: list[str], spec: ClassifierJobSpec) -> Any:
    """Sparse float64[len(texts), num_features]; rows have length 1, or 0 for a text without words."""
    from scipy.sparse import csr_matrix

    parts = [buckets_of(batch, spec.num_features, spec.ngram) for batch in _batches(texts)]
    sizes = np.concatenate([np.diff(ends) for _, ends in parts])
    values = np.repeat(1.0 / np.sqrt(np.maximum(sizes, 1)), sizes)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_matrix((values, np.concatenate([found for found, _ in parts]), ends), (len(texts), spec.num_features))
    matrix.sort_indices()
    return matrix


def _heldout_scores(model: QualityModel, good: Split, bad: Split, spec: ClassifierJobSpec) -> tuple[float, float]:
    """(area under the ROC curve, share of texts on their side of 0.5, mean of both folders) of texts held out."""
    margins = [
        np.concatenate([model.margins(batch) for batch in _batches(texts)]) for texts in (good.heldout, bad.heldout)
    ]
    auc = area_under_curve(*margins)
    least = 0.5 + CHANCE_ERRORS * chance_error(*map(len, margins))
    if not auc > least:
        raise DataError(
            f"clean.classifier: of {len(margins[0])} good and {len(margins[1])} bad texts held out, AUC {auc:.3f} is no better than "
            f"chance (wanted above {least:.3f}); give folders that differ in kind, or more texts: {spec.good!r}, {spec.bad!r}"
        )
    return auc, float(((margins[0] >= 0).mean() + (margins[1] < 0).mean()) / 2)


def area_under_curve(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Share of pairs (one good, one bad) in which the good one is higher; a tie is half."""
    ordered = np.sort(bad)
    below, upto = np.searchsorted(ordered, good, "left"), np.searchsorted(ordered, good, "right")
    return float((below + upto).mean() / 2 / len(bad))


def chance_error(num_good: int, num_bad: int) -> float:
    """Standard error of the AUC of a model that knows nothing (Mann and Whitney 1947)."""
    return math.sqrt((num_good + num_bad + 1) / (12 * num_good * num_bad))
