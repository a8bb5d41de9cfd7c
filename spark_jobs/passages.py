"""Cut passages out that occur before: in an earlier document, or earlier in the same one (a cheaper cousin of the suffix array
of Lee et al. 2022, arXiv:2107.06499, that keeps the first copy).

A passage is `words` words in a row (words.py), compared by a rolling 64-bit hash of the text as it stands, without folding.
Order is that of (priority, doc_id, place). Of equal passages the first stays whole; the words of the later ones are cut, but
for those that are also part of a first copy. What is cut goes from the first byte of a word to the last byte of a word, so
never through a character, and no passage spans two documents. Only tonight's documents are compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import tables, text_rules
from spark_jobs.compiled import compiled
from spark_jobs.job import Job
from spark_jobs.minhash import mix
from spark_jobs.schemas import Schema, ddl
from spark_jobs.unicode_classes import unicode_classes
from spark_jobs.utf8 import Bytes, Offsets, utf8_buffers
from spark_jobs.words import cut_words, words_of

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers never vanish modulo 2^64

WINDOWS: Schema = {"hash": "bigint", "priority": "int", "doc_id": "string", "place": "int"}
REPEATED: Schema = {"doc_id": "string", "place": "int", "is_first": "boolean"}
ORDER = ("hash", "priority", "doc_id", "place")


def cut_repeated(job: Job, labelled: DataFrame, words: int) -> DataFrame:
    """`labelled` with shorter texts where something was cut; one with nothing left gets the reason `repeated_passages`.

    In: columns of a labelled table of documents; those with a reason are not looked at.
    """
    folder = job.scratch("repeated")
    kept = labelled.where("reason is null").select("doc_id", "priority", "text")
    repeated = tables.stage(repeated_windows(kept, words), folder)
    if tables.num_staged(folder) == 0:
        return labelled
    marks = F.collect_list(F.when(F.col("is_first"), -1 - F.col("place")).otherwise(F.col("place")))
    places = (
        repeated.groupBy("doc_id")
        .agg(F.sort_array(marks).alias("marks"))
        .where(F.col("marks")[F.size("marks") - 1] >= 0)
    )
    joined = labelled.join(places.withColumnRenamed("doc_id", "marked"), F.col("doc_id") == F.col("marked"), how="left")
    joined = joined.withColumn("marks", F.when(F.col("reason").isNull(), F.col("marks"))).drop("marked")
    columns = ", ".join(f"`{name}` {joined.schema[name].dataType.simpleString()}" for name in labelled.columns)
    return tables.stage(joined.mapInArrow(_cutter(words), columns), job.scratch("cut"))


def repeated_windows(kept: DataFrame, words: int) -> DataFrame:
    """REPEATED: every window whose words occur at least twice, first copies marked."""

    def window_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            hashes, ends = windows(batch.column("text"), words)
            counts = np.diff(ends)
            owner = pa.array(np.repeat(np.arange(len(batch)), counts))
            places = np.arange(len(hashes)) - np.repeat(ends[:-1], counts)
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(hashes.view(np.int64)), batch.column("priority").take(owner), batch.column("doc_id").take(owner),
                    pa.array(places, pa.int32()),
                ],
                names=list(WINDOWS),
            )  # fmt: skip

    found = kept.select("doc_id", "priority", "text").mapInArrow(window_batches, ddl(WINDOWS))
    ordered = found.repartition("hash").sortWithinPartitions(*ORDER)
    return ordered.mapInArrow(mark_copies, ddl(REPEATED))


def mark_copies(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Sorted windows -> REPEATED. The first of a group is given out when the second is met, perhaps batches later."""
    last = pa.RecordBatch.from_arrays(
        [pa.array([], pa.int64()), pa.array([], pa.string()), pa.array([], pa.int32())], ["hash", "doc_id", "place"]
    )
    is_given = False  # whether `last`, the newest window so far, has been given out
    for batch in batches:
        rows = pa.Table.from_batches([last, batch.select(["hash", "doc_id", "place"])])
        if rows.num_rows == 0:
            continue
        keys = rows.column("hash").to_numpy()
        is_copy = np.append(False, keys[1:] == keys[:-1])
        has_copy = np.append(is_copy[1:], False)
        if last.num_rows:
            is_copy[0] = is_given
        is_first = has_copy & ~is_copy
        given = is_copy | is_first
        if last.num_rows and is_given:
            given[0] = False
        out = rows.append_column("is_first", pa.array(is_first)).filter(pa.array(given)).select(list(REPEATED))
        yield from out.combine_chunks().to_batches()
        is_given = bool(is_copy[-1])
        last = rows.slice(rows.num_rows - 1).combine_chunks().to_batches()[0]


def _cutter(words: int):  # type: ignore[no-untyped-def]
    def cut_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            names = [name for name in batch.schema.names if name != "marks"]
            columns = {name: batch.column(name) for name in names}
            marked = np.flatnonzero(batch.column("marks").is_valid().to_numpy(zero_copy_only=False))
            texts, reasons = columns["text"].to_pylist(), columns["reason"].to_pylist()
            sizes = columns["num_bytes"].to_numpy(zero_copy_only=False).copy()
            for row in marked:
                text = cut(texts[row], np.array(batch.column("marks")[int(row)].as_py()), words)
                texts[row], sizes[row] = text, len(text.encode())
                reasons[row] = None if text else "repeated_passages"
            columns["text"], columns["num_bytes"] = pa.array(texts, pa.string()), pa.array(sizes)
            columns["reason"] = pa.array(reasons, pa.string())
            yield pa.RecordBatch.from_arrays(list(columns.values()), names=names)

    return cut_batches


def cut(text: str, marks: NDArray[np.int64], words: int) -> str:
    """marks: place of each window to cut; -1 - place of each first copy, which stays."""
    _, starts, stops, _ = words_of(text)
    is_cut = _covered(marks[marks >= 0], words, len(starts)) & ~_covered(-1 - marks[marks < 0], words, len(starts))
    edges = np.flatnonzero(np.diff(is_cut.astype(np.int8), prepend=0, append=0))
    data = text.encode()
    pieces, at = [], 0
    for first, behind in zip(edges[::2], edges[1::2], strict=True):
        pieces.append(data[at : starts[first]])
        at = stops[behind - 1]
    rest = " ".join(piece.decode() for piece in [*pieces, data[at:]])  # words on both sides must not grow together
    tidy: str = text_rules.normalise(pa.array([rest], pa.string()))[0].as_py()
    return tidy if any(char.isalnum() for char in tidy) else ""


def _covered(places: NDArray[np.int64], words: int, size: int) -> NDArray[np.bool_]:
    change = np.zeros(size + 1, np.int64)
    np.add.at(change, places, 1)
    np.add.at(change, places + words, -1)
    covered: NDArray[np.bool_] = np.cumsum(change)[:size] > 0
    return covered


def windows(texts: pa.Array, words: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(hash of each window, ends int64[n + 1]) of each text; a text of fewer words has none."""
    return _windows(*utf8_buffers(texts), unicode_classes(), words)  # type: ignore[no-any-return]


@compiled
def _windows(data: Bytes, offsets: Offsets, classes: NDArray[np.uint8], n: int):  # type: ignore[no-untyped-def]
    num_texts = offsets.size - 1
    longest = 1
    for text in range(num_texts):
        longest = max(longest, offsets[text + 1] - offsets[text] + 1)
    words = np.empty(longest, np.uint64)
    starts, stops = np.empty(longest, np.int64), np.empty(longest, np.int64)
    letters = np.empty(longest, np.bool_)
    out = np.empty(max(offsets[-1] - offsets[0], 1), np.uint64)
    ends = np.zeros(num_texts + 1, np.int64)
    power = np.uint64(1)  # BASE ** n
    for _ in range(n):
        power = power * BASE
    size = 0
    for text in range(num_texts):
        count = cut_words(data, offsets[text], offsets[text + 1], classes, words, starts, stops, letters)
        h = np.uint64(0)
        for place in range(count):
            h = h * BASE + mix(words[place])
            if place >= n:
                h -= mix(words[place - n]) * power
            if place >= n - 1:
                out[size] = mix(h)
                size += 1
        ends[text + 1] = size
    return out[:size].copy(), ends
