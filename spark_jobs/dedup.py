"""Remove copies: exact ones, then near ones by MinHash-LSH, among tonight's documents and against all earlier nights.

Order decides who stays: earlier nights first, then (priority, doc_id, source, origin). A document is removed only for a
document that stays and that it was compared with directly (near_copies.py). Definitions of normalised text, shingles and
band keys: minhash.py. Earlier nights are looked up in their index, document by document (key_index.py).

Beside data/ and rejects/ lie `index/` for later nights and `clusters/`: each document that stays and has copies, with counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import xxhash
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from spark_jobs import minhash, passages, tables
from spark_jobs.errors import DataError
from spark_jobs.history import History, write_index
from spark_jobs.job import Job
from spark_jobs.key_index import LINE_BYTES
from spark_jobs.manifests import Documents
from spark_jobs.near_copies import BUCKET_LEADERS, near_copies
from spark_jobs.requests import Outcome
from spark_jobs.schemas import CLUSTERS, DOCUMENTS, Schema, ddl
from spark_jobs.specs import DedupSpec

RULE_VERSION = "dedup-2"
GUARDED_ROWS = 20  # smaller sources are not guarded: one template may well be all they have
CLUSTER_BYTES = 100  # of a row of `clusters`, roughly

SIGNED: Schema = DOCUMENTS | {
    "num_bytes": "bigint",  # of the text
    "key": "string",  # xxh3_128 of the normalised text, 32 hex digits
    "keys": "array<bigint>",  # first half of `key`, then the band keys; a short document has no band keys
    "old_keeper": "string",  # the oldest document of history with the same key, and its night
    "old_night": "string",
    "old": "array<bigint>",  # places in history that share a band; empty for an exact copy of history
    "lines": "bigint",  # of the index, touched to find them
}


def dedup(job: Job, spec: DedupSpec) -> Outcome:
    """Raises: RequestError if an earlier night's index was made with other parameters; DataError if a source is wiped out."""
    documents = job.input("documents", Documents)
    texts = tables.read_data(job.spark, documents, DOCUMENTS)
    history = History.open(job, spec)
    exact = tables.stage(label_exact(sign_documents(texts, spec, history)), job.scratch("exact"))
    near = near_copies(job, exact.where("reason is null"), history, spec)
    labelled = label_all(exact, near, spec)
    before = Totals(labelled) if spec.passages else None
    if spec.passages:
        labelled = passages.cut_repeated(job, labelled, spec.passage_words)
    totals = Totals(labelled)
    totals.require_sources(documents, spec)
    outcome = tables.split_documents(job, labelled, totals.counts, totals.kept_bytes, documents.format, RULE_VERSION)
    write_clusters(job, labelled, outcome)
    kept = labelled.where("reason is null")
    parts = tables.num_files(totals.kept_bytes)
    own = write_index(job, kept, history, spec, totals.kept_keys, _part_rows(kept, parts, outcome.num_rows))
    index = {"index.bytes_read": totals.lines * LINE_BYTES, "index.rows_written": own.num_rows}
    if before is not None:
        index["passages.cut_bytes"] = before.kept_bytes - totals.kept_bytes
    return outcome.model_copy(update={"counts": outcome.counts | index})


def sign_documents(documents: DataFrame, spec: DedupSpec, history: History) -> DataFrame:
    """DOCUMENTS -> SIGNED."""

    def sign_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield sign_batch(batch, spec, history)

    return documents.select(*DOCUMENTS).mapInArrow(sign_batches, ddl(SIGNED))


def sign_batch(batch: pa.RecordBatch, spec: DedupSpec, history: History) -> pa.RecordBatch:
    normals = [minhash.normalised(text) for text in batch.column("text").to_pylist()]
    shingles, offsets = minhash.shingle_sets(pa.array(normals, pa.string()), spec.ngram)
    bands = minhash.band_keys(shingles, offsets, spec.bands, spec.rows, spec.seed)
    exact = [xxhash.xxh3_128_hexdigest(normal.encode()) for normal in normals]
    keys = np.column_stack((np.array([int(key[:16], 16) for key in exact], np.uint64), bands))
    counts = np.where(np.diff(offsets) == 0, 1, 1 + spec.bands)
    used = np.arange(1 + spec.bands) < counts[:, None]
    columns = {name: batch.column(name) for name in DOCUMENTS} | {
        "num_bytes": pa.compute.binary_length(batch.column("text")).cast(pa.int64()),
        "key": pa.array(exact, pa.string()),
        "keys": _lists(counts, keys[used]),
    }
    columns |= _found_in_history(keys, used, exact, history)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _lists(counts: np.ndarray, values: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(np.ascontiguousarray(values).view(np.int64))
    )


def _found_in_history(keys: np.ndarray, used: np.ndarray, exact: list[str], history: History) -> dict[str, pa.Array]:
    """Columns old_keeper, old_night, old, lines. keys: uint64[n, 1 + bands]; used: bool, the same shape."""
    rows = len(exact)
    keepers: list[str | None] = [None] * rows
    nights: list[str | None] = [None] * rows
    lines = np.zeros(rows, np.int64)
    old = np.zeros(0, np.uint64)
    counts = np.zeros(rows, np.int64)
    if rows and not history.is_empty:
        same = history.index.look_up(keys[:, 0], BUCKET_LEADERS)
        lines += same.lines
        for row, place in zip(same.query, same.place, strict=True):
            lines[row] += 1
            record = history.record(int(place))
            if keepers[row] is None and record is not None and record.key == exact[row]:
                keepers[row], nights[row] = record.doc_id, history.night_of(record)
        open_bands = used[:, 1:] & np.array([keeper is None for keeper in keepers])[:, None]
        owner = np.nonzero(open_bands)[0]
        alike = history.index.look_up(keys[:, 1:][open_bands], BUCKET_LEADERS)
        lines += np.bincount(owner, alike.lines, rows).astype(np.int64)
        pairs = np.unique(np.rec.fromarrays([owner[alike.query], alike.place]))
        counts, old = np.bincount(pairs["f0"], minlength=rows), pairs["f1"]
    return {
        "old_keeper": pa.array(keepers, pa.string()), "old_night": pa.array(nights, pa.string()),
        "old": _lists(counts, old), "lines": pa.array(lines),
    }  # fmt: skip


def label_exact(signed: DataFrame) -> DataFrame:
    """Add `reason` (null for the first document of each exact key), `keeper` doc_id and `keeper_night` (null: tonight)."""
    order = Window.partitionBy("key").orderBy("priority", "doc_id", "source", "origin")
    ranked = signed.withColumn("rank", F.row_number().over(order)).withColumn("first_id", F.first("doc_id").over(order))
    in_history = F.col("old_keeper").isNotNull()
    reason = F.when(in_history, "exact_duplicate_of_history").when(F.col("rank") > 1, "exact_duplicate")
    return ranked.select(
        *DOCUMENTS, "num_bytes", "key", "keys", "old", "lines",
        reason.alias("reason"),
        F.when(in_history, F.col("old_keeper")).when(F.col("rank") > 1, F.col("first_id")).alias("keeper"),
        F.col("old_night").alias("keeper_night"),
    )  # fmt: skip


def label_all(exact: DataFrame, near: DataFrame | None, spec: DedupSpec) -> DataFrame:
    """Both kinds of removal in the columns reason, value, threshold, detail, keeper, keeper_night.

    An exact copy whose keeper was removed as a near copy names the document that stays.
    """
    labelled = exact.withColumn("jaccard", F.lit(None).cast("double"))
    if near is not None:
        moved = near.select(
            F.col("doc_id").alias("asked"), F.col("keeper").alias("near_keeper"), F.col("night").alias("near_night"),
            F.col("jaccard").alias("near_jaccard"),
        )  # fmt: skip
        asked = F.when(F.col("keeper_night").isNull(), F.coalesce("keeper", "doc_id"))
        is_moved = F.col("near_keeper").isNotNull()
        labelled = exact.withColumn("asked", asked).join(moved, "asked", how="left")
        labelled = labelled.select(
            *[name for name in exact.columns if name not in ("reason", "keeper", "keeper_night")],
            F.when(F.col("reason").isNotNull(), F.col("reason"))
            .when(is_moved & F.col("near_night").isNotNull(), "near_duplicate_of_history")
            .when(is_moved, "near_duplicate")
            .alias("reason"),
            F.coalesce("near_keeper", "keeper").alias("keeper"),
            F.when(is_moved, F.col("near_night")).otherwise(F.col("keeper_night")).alias("keeper_night"),
            F.when(F.col("reason").isNull(), F.col("near_jaccard")).alias("jaccard"),
        )
    is_near = F.col("reason").startswith("near")
    night = F.coalesce(F.concat(F.lit(" of night "), F.col("keeper_night")), F.lit(""))
    return labelled.select(
        *[name for name in labelled.columns if name != "jaccard"],
        F.when(is_near, F.col("jaccard")).when(F.col("reason").isNotNull(), F.lit(1.0)).alias("value"),
        F.when(is_near, F.lit(spec.min_jaccard)).when(F.col("reason").isNotNull(), F.lit(1.0)).alias("threshold"),
        F.when(F.col("reason").isNotNull(), F.concat(F.lit("kept "), F.col("keeper"), night)).alias("detail"),
    )


class Totals:
    """One pass over the labelled documents for all that the rest of the job needs to know."""

    def __init__(self, labelled: DataFrame) -> None:
        sums = [F.count("*").alias("rows")]
        sums += [F.sum(size).alias(name) for name, size in (
            ("num_bytes", F.col("num_bytes")), ("num_keys", F.size("keys")), ("lines", F.col("lines")))]  # fmt: skip
        self._rows = [row.asDict() for row in labelled.groupBy("source", "reason").agg(*sums).collect()]
        kept = [row for row in self._rows if row["reason"] is None]
        self.counts = tables.counts_of((row["reason"], row["rows"]) for row in self._rows)
        self.kept_bytes = sum(row["num_bytes"] for row in kept)
        self.kept_keys = sum(row["num_keys"] for row in kept)
        self.lines = sum(row["lines"] for row in self._rows)

    def require_sources(self, documents: Documents, spec: DedupSpec) -> None:
        """Likeness to a template must not wipe out a source. Exact copies do not count: a source may well be sent again.

        Raises: DataError.
        """
        for source in sorted({row["source"] for row in self._rows}):
            rows = {row["reason"]: row["rows"] for row in self._rows if row["source"] == source}
            near = sum(count for reason, count in rows.items() if reason and reason.startswith("near"))
            compared = near + rows.get(None, 0)
            if compared >= GUARDED_ROWS and near > spec.max_source_removal * compared:
                raise DataError(
                    f"{documents.address}: {near} of {compared} documents of source {source!r} are near copies, more than "
                    f"dedup.max_source_removal={spec.max_source_removal}; look at what they share, strip it, or raise the bound"
                )


def write_clusters(job: Job, labelled: DataFrame, outcome: Outcome) -> None:
    """CLUSTERS: how many copies each document that stays has had removed tonight."""
    removed = labelled.where("keeper is not null").withColumn(
        "is_near", F.col("reason").startswith("near").cast("bigint")
    )
    clusters = removed.groupBy(F.col("keeper").alias("doc_id"), F.col("keeper_night").alias("night")).agg(
        F.sum(1 - F.col("is_near")).alias("num_exact"),
        F.sum("is_near").alias("num_near"),
        F.min("value").alias("least_jaccard"),
    )
    parts = tables.num_files((outcome.counts["in"] - outcome.counts["out"]) * CLUSTER_BYTES)
    place = tables.range_of_hex("doc_id", parts)
    tables.write_table(clusters.select(*CLUSTERS), job.out / "clusters", "parquet", place, parts, ("doc_id", "night"))


def _part_rows(kept: DataFrame, parts: int, num_rows: int) -> list[int]:
    """Documents in each range of doc_id."""
    if parts == 1:
        return [num_rows]
    counts = kept.groupBy(tables.range_of_hex("doc_id", parts).alias("part")).count().collect()
    found = {row["part"]: row["count"] for row in counts}
    return [found.get(part, 0) for part in range(parts)]
