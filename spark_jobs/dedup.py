"""Remove copies: exact ones, then near ones by MinHash-LSH, among tonight's documents and against all earlier nights.

Order decides who stays: earlier nights first, then (priority, doc_id, source, origin). A document is removed only for a
document that stays and that it was compared with directly; likeness is never chained (A~B~C does not remove C for A).
Definitions of normalised text, shingles and band keys: minhash.py.

Beside data/ and rejects/ lie `keys/` and `index/` of the documents that stay, for later nights.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import numpy as np
import pyarrow as pa
import xxhash
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from spark_jobs import minhash, tables
from spark_jobs.errors import RequestError
from spark_jobs.job import Job
from spark_jobs.manifests import Corpus, Documents
from spark_jobs.requests import Outcome
from spark_jobs.schemas import BAND_KEYS, DOCUMENT_ORDER, DOCUMENTS, EXACT_KEYS, Schema, ddl
from spark_jobs.specs import DedupSpec

RULE_VERSION = "dedup-1"
# A document is compared with at most this many of the first documents of each of its buckets: a bucket of n costs n * 64.
BUCKET_LEADERS = 64
KEY_BYTES = 40  # of a row of `index` or `keys`, roughly

PLACE: Schema = {name: kind for name, kind in DOCUMENTS.items() if name != "text"}
SIGNED: Schema = PLACE | {"num_bytes": "bigint", "key": "string", "bands": "array<bigint>"}
SHINGLED: Schema = {"doc_id": "string", "shingles": "array<bigint>"}
INDEX_FIELDS = ("ngram", "bands", "rows", "seed")  # of the spec: an index made with others cannot be compared


def dedup(job: Job, spec: DedupSpec) -> Outcome:
    """Raises: RequestError if an earlier night's index was made with other parameters."""
    documents = job.input("documents", Documents)
    texts = tables.read_data(job.spark, documents, DOCUMENTS)
    history = History.open(job, spec)
    signed = tables.stage(sign_documents(texts, spec), job.scratch("signed"))
    exact = tables.stage(label_exact(signed, history.keys(job.spark)), job.scratch("exact"))
    first = exact.where("reason is null")
    pairs = tables.stage(candidate_pairs(first, history.index(job.spark)), job.scratch("pairs"))
    near = None
    if not pairs.isEmpty():  # a night without candidates is common, and planning joins over nothing takes seconds
        likeness = tables.stage(verify_pairs(pairs, texts, history.texts(job.spark), spec), job.scratch("likeness"))
        near = choose_removals(likeness)
    labelled = tables.stage(label_all(exact, near, spec), job.scratch("labelled"))
    _write_index(job, labelled)
    with_texts = labelled.join(_texts_of(texts, labelled), list(DOCUMENT_ORDER), how="left")
    return tables.write_documents(job, with_texts, documents.format, RULE_VERSION)


class History:
    """The documents that stayed on earlier nights, through the manifests of those nights."""

    def __init__(self, nights: list[tuple[str, Documents]]) -> None:
        self._nights = nights

    @classmethod
    def open(cls, job: Job, spec: DedupSpec) -> History:
        if "history" not in job.inputs:
            return cls([])
        corpus = job.input("history", Corpus)
        nights = [(night.night, Documents.load(corpus.at(night.unique.address))) for night in corpus.nights]
        for night, documents in nights:
            for name in INDEX_FIELDS:
                made, asked = documents.spec.get(name), getattr(spec, name)
                if made != asked:
                    raise RequestError(
                        f"dedup.{name}={asked}: the index of night {night} was made with {made} and cannot be compared; "
                        f"set dedup.{name}={made}, or begin a new pipeline"
                    )
        return cls(nights)

    def keys(self, spark: SparkSession) -> DataFrame | None:
        return self._table(spark, "keys", EXACT_KEYS)

    def index(self, spark: SparkSession) -> DataFrame | None:
        return self._table(spark, "index", BAND_KEYS)

    def texts(self, spark: SparkSession) -> DataFrame | None:
        parts = [tables.read_data(spark, documents, DOCUMENTS) for _, documents in self._nights]
        return _union(parts)

    def _table(self, spark: SparkSession, folder: str, schema: Schema) -> DataFrame | None:
        parts = [
            tables.read_table(spark, documents.paths(folder), "parquet", schema).withColumn("night", F.lit(night))
            for night, documents in self._nights
        ]
        return _union(parts)


def _union(parts: list[DataFrame]) -> DataFrame | None:
    return reduce(DataFrame.unionByName, parts) if parts else None


def sign_documents(documents: DataFrame, spec: DedupSpec) -> DataFrame:
    """DOCUMENTS -> SIGNED: exact key, and band keys (null for a short document), without the text."""

    def sign_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield sign_batch(batch, spec)

    return documents.select(*DOCUMENTS).mapInArrow(sign_batches, ddl(SIGNED))


def sign_batch(batch: pa.RecordBatch, spec: DedupSpec) -> pa.RecordBatch:
    normals = [minhash.normalised(text) for text in batch.column("text").to_pylist()]
    shingles, offsets = minhash.shingle_sets(pa.array(normals, pa.string()), spec.ngram)
    keys = minhash.band_keys(shingles, offsets, spec.bands, spec.rows, spec.seed).view(np.int64)
    short = np.diff(offsets) == 0
    starts = pa.array(np.arange(len(normals) + 1) * spec.bands, pa.int32())
    columns = {name: batch.column(name) for name in PLACE} | {
        "num_bytes": pa.compute.binary_length(batch.column("text")).cast(pa.int64()),
        "key": pa.array([xxhash.xxh3_128_hexdigest(normal.encode()) for normal in normals], pa.string()),
        "bands": pa.ListArray.from_arrays(starts, pa.array(keys.ravel()), mask=pa.array(short)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def label_exact(signed: DataFrame, history_keys: DataFrame | None) -> DataFrame:
    """Add `reason` (null for the first document of each exact key), `keeper` doc_id and `keeper_night` (null: tonight)."""
    order = Window.partitionBy("key").orderBy("priority", "doc_id", "source", "origin")
    ranked = signed.withColumn("rank", F.row_number().over(order)).withColumn("first_id", F.first("doc_id").over(order))
    if history_keys is None:
        old = ranked.withColumn("old_id", F.lit(None).cast("string")).withColumn("night", F.lit(None).cast("string"))
    else:
        known = history_keys.groupBy("key").agg(F.min(F.struct("night", "doc_id")).alias("oldest"))
        known = known.select("key", F.col("oldest.doc_id").alias("old_id"), F.col("oldest.night").alias("night"))
        old = ranked.join(known, "key", how="left")
    in_history = F.col("old_id").isNotNull()
    reason = F.when(in_history, "exact_duplicate_of_history").when(F.col("rank") > 1, "exact_duplicate")
    return old.select(
        *SIGNED,
        reason.alias("reason"),
        F.when(in_history, F.col("old_id")).when(F.col("rank") > 1, F.col("first_id")).alias("keeper"),
        F.col("night").alias("keeper_night"),
    )


def candidate_pairs(first: DataFrame, history_index: DataFrame | None) -> DataFrame:
    """Pairs that share a band: (doc_id, leader string, night string: of the leader, null for tonight), each once.

    `leader` comes before `doc_id` in the order of survival.
    """
    keys = first.select("doc_id", "priority", F.posexplode("bands").alias("band", "key64"))
    keys = keys.withColumn("night", F.lit(None).cast("string")).withColumn("rank", F.struct("priority", "doc_id"))
    order = Window.partitionBy("band", "key64").orderBy("rank")
    leaders = keys.withColumn("place", F.row_number().over(order)).where(F.col("place") <= BUCKET_LEADERS)
    members, ahead = keys.alias("m"), leaders.alias("l")
    same_bucket = (F.col("m.band") == F.col("l.band")) & (F.col("m.key64") == F.col("l.key64"))
    pairs = members.join(ahead, same_bucket & (F.col("l.rank") < F.col("m.rank")), how="inner")
    pairs = pairs.select("m.doc_id", F.col("l.doc_id").alias("leader"), "l.night")
    if history_index is not None:
        oldest = Window.partitionBy("band", "key64").orderBy("night", "doc_id")
        known = history_index.join(keys.select("band", "key64").distinct(), ["band", "key64"], how="left_semi")
        known = known.withColumn("place", F.row_number().over(oldest)).where(F.col("place") <= BUCKET_LEADERS)
        known = known.select("band", "key64", F.col("doc_id").alias("leader"), "night")
        pairs = pairs.unionByName(
            keys.select("doc_id", "band", "key64")
            .join(known, ["band", "key64"], how="inner")
            .select("doc_id", "leader", "night")
        )
    return pairs.distinct()


def verify_pairs(pairs: DataFrame, texts: DataFrame, history_texts: DataFrame | None, spec: DedupSpec) -> DataFrame:
    """The pairs whose shingle sets reach spec.min_jaccard, with `jaccard` double."""
    tonight = pairs.where("night is null").select(F.col("leader").alias("doc_id")).union(pairs.select("doc_id"))
    sets = shingle_documents(_one_text_each(texts, tonight), spec)
    if history_texts is not None:
        earlier = pairs.where("night is not null").select(F.col("leader").alias("doc_id"))
        # an id of tonight never equals one of history: the same text has the same exact key
        sets = sets.unionByName(shingle_documents(_one_text_each(history_texts, earlier), spec))
    left = sets.select("doc_id", F.col("shingles").alias("left"))
    right = sets.select(F.col("doc_id").alias("leader"), F.col("shingles").alias("right"))
    shared = F.size(F.array_intersect("left", "right")).cast("double")
    joined = pairs.join(left, "doc_id", how="inner").join(right, "leader", how="inner").withColumn("shared", shared)
    jaccard = F.col("shared") / (F.size("left") + F.size("right") - F.col("shared"))
    return joined.select("doc_id", "leader", "night", jaccard.alias("jaccard")).where(
        F.col("jaccard") >= spec.min_jaccard
    )


def _one_text_each(texts: DataFrame, ids: DataFrame) -> DataFrame:
    """(doc_id, text) of each id; rows that share an id share the text."""
    wanted = texts.select("doc_id", "text").join(ids.distinct(), "doc_id", how="left_semi")
    return wanted.groupBy("doc_id").agg(F.min("text").alias("text"))


def shingle_documents(texts: DataFrame, spec: DedupSpec) -> DataFrame:
    """(doc_id, text) -> SHINGLED."""

    def shingle_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            normals = pa.array([minhash.normalised(text) for text in batch.column("text").to_pylist()], pa.string())
            shingles, offsets = minhash.shingle_sets(normals, spec.ngram)
            sets = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(shingles.view(np.int64)))
            yield pa.RecordBatch.from_arrays([batch.column("doc_id"), sets], names=list(SHINGLED))

    return texts.mapInArrow(shingle_batches, ddl(SHINGLED))


def choose_removals(likeness: DataFrame) -> DataFrame:
    """(doc_id, leader, night, jaccard) of each document to remove, with the most alike of the documents that stay.

    In rounds: who has no rival left before him stays; whoever is like one who stays goes, and rivals no one any more.
    Each round settles at least the first document of every cluster; a chain in order of survival is the worst case.
    """
    found = likeness.where("night is not null")
    open_pairs = likeness.where("night is null").join(found.select("doc_id").distinct(), "doc_id", how="left_anti")
    gone = found.select("doc_id").distinct().select(F.col("doc_id").alias("leader"))
    open_pairs = open_pairs.join(gone, "leader", how="left_anti").localCheckpoint()
    while not open_pairs.isEmpty():
        rivals = open_pairs.select(F.col("doc_id").alias("leader")).distinct()
        hits = open_pairs.join(rivals, "leader", how="left_anti").select(*likeness.columns).localCheckpoint()
        found = found.unionByName(hits)
        removed = hits.select("doc_id").distinct()
        open_pairs = open_pairs.join(removed, "doc_id", how="left_anti")
        open_pairs = open_pairs.join(removed.select(F.col("doc_id").alias("leader")), "leader", how="left_anti")
        open_pairs = open_pairs.select(*likeness.columns).localCheckpoint()
    best = F.min(F.struct((-F.col("jaccard")).alias("unlike"), F.col("leader"), F.col("night"))).alias("best")
    chosen = found.groupBy("doc_id").agg(best)
    return chosen.select(
        "doc_id",
        F.col("best.leader").alias("leader"),
        F.col("best.night").alias("night"),
        (-F.col("best.unlike")).alias("jaccard"),
    )


def label_all(exact: DataFrame, near: DataFrame | None, spec: DedupSpec) -> DataFrame:
    """Join both kinds of removal: PLACE, num_bytes, key, bands, reason, value, threshold, detail.

    An exact copy whose keeper was removed as a near copy names the document that stays.
    """
    if near is None:
        near = exact.sparkSession.createDataFrame([], "doc_id string, leader string, night string, jaccard double")
    by_self = near.select("doc_id", F.col("leader").alias("near_id"), F.col("night").alias("near_night"), "jaccard")
    by_keeper = near.select(
        F.col("doc_id").alias("keeper"), F.col("leader").alias("final_id"), F.col("night").alias("final_night")
    )
    first = exact.where("reason is null").join(by_self, "doc_id", how="left")
    is_near = F.col("near_id").isNotNull()
    reason = F.when(is_near & F.col("near_night").isNotNull(), "near_duplicate_of_history").when(
        is_near, "near_duplicate"
    )
    first = first.select(
        *SIGNED, reason.alias("reason"), F.col("jaccard").alias("value"), F.when(is_near, F.lit(spec.min_jaccard)).alias("threshold"),
        F.when(is_near, _detail("near_id", "near_night")).otherwise(F.lit("")).alias("detail"),
    )  # fmt: skip
    copies = exact.where("reason is not null").join(by_keeper, "keeper", how="left")
    moved = F.col("final_id").isNotNull() & F.col("keeper_night").isNull()
    copies = copies.select(
        *SIGNED, "reason", F.lit(1.0).alias("value"), F.lit(1.0).alias("threshold"),
        F.when(moved, _detail("final_id", "final_night")).otherwise(_detail("keeper", "keeper_night")).alias("detail"),
    )  # fmt: skip
    return first.unionByName(copies)


def _detail(doc_id: str, night: str) -> F.Column:
    return F.concat(F.lit("kept "), F.col(doc_id), F.coalesce(F.concat(F.lit(" of night "), F.col(night)), F.lit("")))


def _texts_of(texts: DataFrame, labelled: DataFrame) -> DataFrame:
    """(DOCUMENT_ORDER columns, text) of the rows that stay, each once even if a row came twice."""
    kept = labelled.where("reason is null").select("doc_id")
    rows = texts.join(kept, "doc_id", how="left_semi")
    least = F.min(F.struct("priority", "source", "origin", "text")).alias("row")
    return rows.groupBy("doc_id").agg(least).select("doc_id", "row.priority", "row.source", "row.origin", "row.text")


def _write_index(job: Job, labelled: DataFrame) -> None:
    kept = labelled.where("reason is null")
    num_kept = kept.count()
    bands = kept.select(F.posexplode("bands").alias("band", "key64"), "doc_id").select(*BAND_KEYS)
    num_bands = F.coalesce(F.max(F.size("bands")), F.lit(0))
    parts = tables.num_files(num_kept * KEY_BYTES * max(1, kept.agg(num_bands).first()[0]))
    place = tables.range_of_long("key64", parts)
    tables.write_table(bands, job.out / "index", "parquet", place, parts, ("key64", "band", "doc_id"))
    parts = tables.num_files(num_kept * KEY_BYTES)
    place = tables.range_of_hex("key", parts)
    tables.write_table(kept.select(*EXACT_KEYS), job.out / "keys", "parquet", place, parts, ("key", "doc_id"))
