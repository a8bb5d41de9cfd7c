"""Near copies: which pairs share a band, how alike they are, and who goes.

A document goes only for one that stays and that it was compared with directly; likeness is never chained (A~B~C does not
remove C for A). Linear in the size of a bucket: a document is compared with the first BUCKET_LEADERS of each bucket only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import minhash, tables
from spark_jobs.history import History
from spark_jobs.job import Job
from spark_jobs.schemas import Schema, ddl
from spark_jobs.specs import DedupSpec

BUCKET_LEADERS = 64  # a bucket of n costs n * 64

# `leader` comes before `doc_id` in the order of survival: a doc_id of tonight, or `@place` in the index of earlier nights
PAIRS: Schema = {"doc_id": "string", "leader": "string"}
POSTINGS = ("key64", "priority", "doc_id")
# `night` is null for tonight
SETS: Schema = {
    "leader": "string",
    "doc_id": "string",
    "night": "string",
    "priority": "int",
    "shingles": "array<bigint>",
}
ALIKE: Schema = {"doc_id": "string", "keeper": "string", "night": "string", "jaccard": "double"}


def near_copies(job: Job, first: DataFrame, history: History, spec: DedupSpec) -> DataFrame | None:
    """ALIKE of each document to remove; None if no two documents share a band.

    first: doc_id, priority, text, keys array<bigint> (band keys from the second on), old array<bigint> (places in history).
    """
    folder = job.scratch("pairs")
    pairs = tables.stage(candidate_pairs(first, history), folder)
    if (
        tables.num_staged(folder) == 0
    ):  # a night without candidates is common, and planning joins over nothing takes time
        return None
    pairs = pairs.distinct()
    ids = pairs.select("doc_id").union(pairs.select(F.col("leader").alias("doc_id")))
    tonight = first.select("doc_id", "priority", "text").join(ids, "doc_id", how="left_semi")
    sets = shingle_documents(tonight, spec)
    if not history.is_empty:
        places = pairs.select("leader").where("leader like '@%'").distinct()
        sets = sets.unionByName(shingle_history(places, history, spec))
    sets = tables.stage(sets, job.scratch("sets"))
    alike = compare(pairs, sets).where(F.col("jaccard") >= spec.min_jaccard)
    return tables.stage(choose_removals(alike), job.scratch("near"))


def candidate_pairs(first: DataFrame, history: History) -> DataFrame:
    """PAIRS that share a band, tonight's and those with history; the same pair once for each band."""
    postings = first.select(
        F.explode(F.expr("slice(keys, 2, greatest(size(keys) - 1, 0))")).alias("key64"), "priority", "doc_id"
    )
    ordered = postings.repartition("key64").sortWithinPartitions(*POSTINGS)
    tonight = ordered.mapInArrow(pair_buckets, ddl(PAIRS))
    if history.is_empty:
        return tonight
    places = F.expr("transform(old, place -> concat('@', cast(place AS string)))")
    return tonight.unionByName(first.select("doc_id", F.explode(places).alias("leader")))


def pair_buckets(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Sorted postings -> each member of a bucket with the leaders before it. A bucket may span batches."""
    open_keys, open_ids = np.zeros(0, np.int64), pa.array([], pa.string())  # leaders of the last bucket so far
    for batch in batches:
        keys = np.concatenate((open_keys, batch.column("key64").to_numpy()))
        ids = pa.concat_arrays([open_ids, batch.column("doc_id")])
        if len(keys) == 0:
            continue
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        sizes = np.diff(np.append(starts, len(keys)))
        place = np.arange(len(keys)) - np.repeat(starts, sizes)
        num_leaders = np.minimum(place, BUCKET_LEADERS)
        num_leaders[: len(open_keys)] = 0  # paired when they came
        members = np.repeat(np.arange(len(keys)), num_leaders)
        nth = np.arange(len(members)) - np.repeat(np.cumsum(num_leaders) - num_leaders, num_leaders)
        leaders = np.repeat(starts, sizes)[members] + nth
        yield pa.RecordBatch.from_arrays([ids.take(pa.array(members)), ids.take(pa.array(leaders))], names=list(PAIRS))
        stop = min(len(keys), int(starts[-1]) + BUCKET_LEADERS)
        open_keys, open_ids = keys[starts[-1] : stop], ids[int(starts[-1]) : stop]


def shingle_documents(documents: DataFrame, spec: DedupSpec) -> DataFrame:
    """(doc_id, priority, text) -> SETS."""

    def shingle_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            ids = batch.column("doc_id")
            yield _sets(ids, ids, pa.nulls(len(ids), pa.string()), batch.column("priority"), batch.column("text"), spec)

    return documents.select("doc_id", "priority", "text").mapInArrow(shingle_batches, ddl(SETS))


def shingle_history(places: DataFrame, history: History, spec: DedupSpec) -> DataFrame:
    """(leader `@place`) -> SETS of those documents, in order of place so that no row group is read twice in a batch."""

    def fetch_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = sorted((int(leader[1:]), leader) for leader in batch.column("leader").to_pylist())
            kept = [(leader, record) for place, leader in found if (record := history.record(place)) is not None]
            records = [record for _, record in kept]
            yield _sets(
                pa.array([leader for leader, _ in kept], pa.string()),
                pa.array([record.doc_id for record in records], pa.string()),
                pa.array([history.night_of(record) for record in records], pa.string()),
                pa.array(np.zeros(len(kept), np.int32)),
                pa.array(history.texts(records), pa.string()),
                spec,
            )

    return places.mapInArrow(fetch_batches, ddl(SETS))


def _sets(
    leader: pa.Array, doc_id: pa.Array, night: pa.Array, priority: pa.Array, texts: pa.Array, spec: DedupSpec
) -> pa.RecordBatch:
    normals = pa.array([minhash.normalised(text) for text in texts.to_pylist()], pa.string())
    shingles, offsets = minhash.shingle_sets(normals, spec.ngram)
    sets = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(shingles.view(np.int64)))
    return pa.RecordBatch.from_arrays([leader, doc_id, night, priority, sets], names=list(SETS))


def compare(pairs: DataFrame, sets: DataFrame) -> DataFrame:
    """ALIKE and `priority` of doc_id: the Jaccard coefficient of the shingle sets of each pair."""
    left = sets.where("night is null").select("doc_id", "priority", F.col("shingles").alias("left"))
    right = sets.select("leader", F.col("doc_id").alias("keeper"), "night", F.col("shingles").alias("right"))
    joined = pairs.join(left, "doc_id", how="inner").join(right, "leader", how="inner")
    shared = F.size(F.array_intersect("left", "right")).cast("double")
    joined = joined.withColumn("shared", shared)
    jaccard = F.col("shared") / (F.size("left") + F.size("right") - F.col("shared"))
    return joined.select("doc_id", "keeper", "night", jaccard.alias("jaccard"), "priority")


def choose_removals(alike: DataFrame) -> DataFrame:
    """ALIKE of each document to remove, with the most alike of those that stay.

    One pass in the order of survival, by one task: a document goes if a document before it that stays is like it. The task
    remembers the ids that go; it reads pairs that are near copies indeed, far fewer than the documents.
    """
    ordered = alike.repartition(1).sortWithinPartitions("priority", "doc_id")
    return ordered.select(*ALIKE).mapInArrow(choose, ddl(ALIKE))


def choose(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    gone: set[str] = set()
    best: dict[str, object] | None = None  # of the document whose pairs are being read
    schema = pa.schema([(name, pa.float64() if name == "jaccard" else pa.string()) for name in ALIKE])
    for batch in batches:
        chosen = []
        for pair in batch.to_pylist():
            if best is not None and best["doc_id"] != pair["doc_id"]:
                chosen.append(best)
                gone.add(str(best["doc_id"]))
                best = None
            stays = pair["night"] is not None or pair["keeper"] not in gone
            if stays and (best is None or _rank(pair) < _rank(best)):
                best = pair
        yield pa.RecordBatch.from_pylist(chosen, schema=schema)
    if best is not None:
        yield pa.RecordBatch.from_pylist([best], schema=schema)


def _rank(pair: dict[str, object]) -> tuple[object, ...]:
    return (-float(str(pair["jaccard"])), pair["keeper"], pair["night"] or "")
