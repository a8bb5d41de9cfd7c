"""Take documents out that hold items of evaluation sets (definitions: evaluation_items.py).

A document goes if it holds at least `min_item_share` of the features of one item. Features that many of tonight's documents
hold are no evidence (a famous speech, a licence, a form) and are ignored. The reject names the item.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.evaluation_items import Features, Searcher, features_of, item_sizes, worst_item
from spark_jobs.evaluation_sets import read_items
from spark_jobs.job import Job
from spark_jobs.manifests import Documents
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, Schema, ddl
from spark_jobs.specs import DecontaminateSpec

RULE_VERSION = "decontaminate-1"
COMMON_DOCUMENTS = 10  # a feature in fewer documents is never common

FOUND: Schema = {"doc_id": "string", "features": "array<bigint>"}
FLAGGED: Schema = {"doc_id": "string", "item": "string", "share": "double"}


def decontaminate(job: Job, spec: DecontaminateSpec) -> Outcome:
    """Raises: RequestError if an evaluation set has no file, or a line that is no JSON object."""
    documents = job.input("documents", Documents)
    features = features_of([item for chosen in spec.sets for item in read_items(chosen)], spec)
    texts = tables.read_data(job.spark, documents, DOCUMENTS)
    folder = job.scratch("found")
    found = tables.stage(find_features(texts, features), folder)
    flagged, num_common = None, 0
    if tables.num_staged(folder):
        is_common = common_features(found, len(features.hashes), documents.num_rows, spec)
        num_common = int(is_common.sum())
        flagged = tables.stage(flag_documents(found, features, is_common, spec), job.scratch("flagged"))
    outcome = tables.write_documents(job, label(texts, flagged, spec), documents.format, RULE_VERSION)
    counts = {"items": len(features.names), "features": len(features.hashes), "features_common": num_common}
    return outcome.model_copy(update={"counts": outcome.counts | counts})


def find_features(texts: DataFrame, features: Features) -> DataFrame:
    """FOUND: the documents that hold any feature."""
    searcher = Searcher(features)

    def find_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            hits = searcher.find(batch.column("text"))
            rows = [place for place, numbers in enumerate(hits) if len(numbers)]
            lists = pa.array([hits[place] for place in rows], pa.list_(pa.int64()))
            yield pa.RecordBatch.from_arrays(
                [batch.column("doc_id").take(pa.array(rows, pa.int64())), lists], names=list(FOUND)
            )

    return texts.select("doc_id", "text").mapInArrow(find_batches, ddl(FOUND))


def common_features(
    found: DataFrame, num_features: int, num_documents: int, spec: DecontaminateSpec
) -> NDArray[np.bool_]:
    limit = max(COMMON_DOCUMENTS, int(spec.max_document_share * num_documents))
    counts = found.select(F.explode("features").alias("feature")).groupBy("feature").count()
    is_common = np.zeros(num_features, np.bool_)
    is_common[[row["feature"] for row in counts.where(F.col("count") > limit).select("feature").collect()]] = True
    return is_common


def flag_documents(
    found: DataFrame, features: Features, is_common: NDArray[np.bool_], spec: DecontaminateSpec
) -> DataFrame:
    """FOUND -> FLAGGED."""
    sizes = item_sizes(features, is_common)
    threshold, schema = (
        spec.min_item_share,
        pa.schema([("doc_id", pa.string()), ("item", pa.string()), ("share", pa.float64())]),
    )

    def flag_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = []
            for row in batch.to_pylist():
                item, share = worst_item(np.array(row["features"]), features, is_common, sizes)
                if item >= 0 and share >= threshold:
                    rows.append({"doc_id": row["doc_id"], "item": features.names[item], "share": share})
            yield pa.RecordBatch.from_pylist(rows, schema=schema)

    return found.mapInArrow(flag_batches, ddl(FLAGGED))


def label(texts: DataFrame, flagged: DataFrame | None, spec: DecontaminateSpec) -> DataFrame:
    """DOCUMENTS, num_bytes, reason, value, threshold, detail."""
    labelled = texts.withColumn("num_bytes", F.octet_length("text").cast("bigint"))
    if flagged is None:
        nothing = {"reason": "string", "value": "double", "threshold": "double", "detail": "string"}
        return labelled.withColumns({name: F.lit(None).cast(kind) for name, kind in nothing.items()})
    joined = labelled.join(flagged, "doc_id", how="left")
    is_hit = F.col("item").isNotNull()
    return joined.select(
        *DOCUMENTS, "num_bytes", F.when(is_hit, F.lit("contaminated")).alias("reason"), F.col("share").alias("value"),
        F.when(is_hit, F.lit(spec.min_item_share)).alias("threshold"), F.concat(F.lit("holds "), "item").alias("detail"),
    )  # fmt: skip
