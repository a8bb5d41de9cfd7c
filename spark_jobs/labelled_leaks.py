"""Leaks between splits of a labelled set: rows whose text a more protected split has too, whole or nearly.

Test is protected from validation and train, validation from train. Signatures, candidate pairs and their comparison are
those of the duplicate step (minhash.py, near_copies.py); pairs inside one split are no leak and are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import xxhash
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from spark_jobs import minhash, near_copies, tables
from spark_jobs.job import Job
from spark_jobs.label_spec import LabelSpec, LeakSpec, TaskKind
from spark_jobs.schemas import Schema, ddl
from spark_jobs.specs import DedupSpec

SEED = 1  # of the hash family, as in dedup

SIGNED: Schema = {
    "id": "string",
    "input_key": "string",  # xxh3_128 of the normalised input: the same text but for case, width and white space
    "bands": "array<bigint>",  # empty for an input of fewer words than a shingle
}
LEAKS: Schema = {"id": "string", "keeper": "string", "jaccard": "double"}


def input_of(task: TaskKind) -> Column:
    """The text by which two rows of the task are copies of each other."""
    if task == "tagging":
        return F.array_join("tokens", " ")
    if task == "dialogue":
        return F.expr("array_join(transform(messages, m -> m.content), '\n')")
    if task == "preference":
        prompt = F.expr("array_join(transform(messages, m -> m.content), '\n')")
        return F.concat_ws("\n", "text", prompt)
    if task == "ranking":  # a query has many rows, which stay together
        return F.col("text")
    return F.concat_ws("\n", "text", "pair")


def sign(rows: DataFrame, spec: LabelSpec) -> DataFrame:
    """(id, input string) -> SIGNED."""
    leak = spec.leak

    def sign_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            normals = [minhash.normalised(text) for text in batch.column("input").to_pylist()]
            shingles, offsets = minhash.shingle_sets(pa.array(normals, pa.string()), leak.ngram)
            keys = minhash.band_keys(shingles, offsets, leak.bands, leak.rows, SEED)
            has_shingles = np.diff(offsets) > 0
            ends = np.concatenate(([0], np.cumsum(has_shingles * leak.bands)))
            used = pa.array(np.ascontiguousarray(keys[has_shingles]).view(np.int64).ravel())
            bands = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), used)
            hashes = pa.array([xxhash.xxh3_128_hexdigest(normal.encode()) for normal in normals], pa.string())
            yield pa.RecordBatch.from_arrays([batch.column("id"), hashes, bands], names=list(SIGNED))

    return rows.select("id", "input").mapInArrow(sign_batches, ddl(SIGNED))


def find_leaks(job: Job, rows: DataFrame, spec: LeakSpec) -> DataFrame:
    """LEAKS of the rows to take out, with the most alike row of a more protected split that stays.

    rows: id, split_rank int (0 is the most protected), input_key, bands, input; ids are unique.
    """
    # one text of a split stands for all rows that have it: `0<id>` for test, `2<id>` for train
    by_text = Window.partitionBy("input_key", "split_rank")
    named = rows.withColumn("twin", F.concat(F.col("split_rank").cast("string"), F.min("id").over(by_text)))
    named = tables.stage(named.select("id", "twin", "split_rank", "input_key", "bands", "input"), job.scratch("texts"))
    texts = named.groupBy("twin").agg(
        F.min("split_rank").alias("priority"), F.min("input_key").alias("input_key"),
        F.min("bands").alias("bands"), F.min("input").alias("text"),
    ).withColumnRenamed("twin", "doc_id")  # fmt: skip
    alike = _whole_copies(texts)
    near = _near_copies(job, texts, spec)
    if near is not None:
        alike = alike.unionByName(near)
    removed = near_copies.choose_removals(alike)
    chosen = removed.select(F.col("doc_id").alias("twin"), F.expr("substring(keeper, 2)").alias("keeper"), "jaccard")
    return named.select("id", "twin").join(chosen, "twin", how="inner").select(*LEAKS)


def _whole_copies(texts: DataFrame) -> DataFrame:
    """near_copies.ALIKE and priority, of texts that are equal when normalised."""
    guarded = texts.select("input_key", F.col("doc_id").alias("keeper"), F.col("priority").alias("before"))
    pairs = texts.join(guarded, "input_key", how="inner").where("before < priority")
    night = F.lit(None).cast("string")
    return pairs.select("doc_id", "keeper", night.alias("night"), F.lit(1.0).alias("jaccard"), "priority")


def _near_copies(job: Job, texts: DataFrame, spec: LeakSpec) -> DataFrame | None:
    """near_copies.ALIKE and priority; None if no two texts of two splits share a band."""
    as_dedup = DedupSpec(ngram=spec.ngram, bands=spec.bands, rows=spec.rows, min_jaccard=spec.min_jaccard, seed=SEED)
    postings = texts.select(F.explode("bands").alias("key64"), "priority", "doc_id")
    ordered = postings.repartition("key64").sortWithinPartitions(*near_copies.POSTINGS)
    pairs = ordered.mapInArrow(near_copies.pair_buckets, ddl(near_copies.PAIRS))
    crossing = pairs.where("substring(leader, 1, 1) < substring(doc_id, 1, 1)").distinct()
    folder = job.scratch("pairs")
    crossing = tables.stage(crossing, folder)
    if tables.num_staged(folder) == 0:
        return None
    ids = crossing.select("doc_id").union(crossing.select(F.col("leader").alias("doc_id")))
    asked = texts.join(ids, "doc_id", how="left_semi")
    sets = tables.stage(near_copies.shingle_documents(asked, as_dedup), job.scratch("sets"))
    return near_copies.compare(crossing, sets).where(F.col("jaccard") >= spec.min_jaccard)
