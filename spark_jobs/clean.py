"""Clean documents: repair and normalise their text, mask personal data, name the language, then apply the quality
rules (mojibake.py, text_rules.py, pii.py, language.py, quality_rules.py).

The document id stays the hash of the text as ingested, so a cleaned document can be traced to its source.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import language, mojibake, pii, quality_rules, tables, text_rules
from spark_jobs.job import Job
from spark_jobs.manifests import Documents
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, Schema, ddl
from spark_jobs.specs import CleanSpec

RULE_VERSION = "quality-3"
COMPUTED = ("text", "language", "language_score")
LABELLED: Schema = DOCUMENTS | {
    "num_bytes": "bigint", "reason": "string", "value": "double", "threshold": "double", "detail": "string",
} | {f"masked_{kind}": "bigint" for kind in pii.KINDS}  # fmt: skip


def clean(job: Job, spec: CleanSpec) -> Outcome:
    documents = job.input("documents", Documents)
    labelled = tables.stage(
        label_documents(tables.read_data(job.spark, documents, DOCUMENTS), spec), job.scratch("labelled")
    )
    outcome = tables.write_documents(job, labelled, documents.format, RULE_VERSION)
    return outcome.model_copy(update={"counts": outcome.counts | masked_counts(labelled, spec)})


def masked_counts(labelled: DataFrame, spec: CleanSpec) -> dict[str, int]:
    """`masked.<kind>`: replacements in the documents that stay."""
    if not spec.mask_pii:
        return {}
    row = labelled.where("reason is null").agg(*(F.sum(f"masked_{kind}").alias(kind) for kind in spec.mask_pii)).first()
    return {f"masked.{kind}": int(row[kind] or 0) for kind in sorted(spec.mask_pii)}


def label_documents(documents: DataFrame, spec: CleanSpec) -> DataFrame:
    """Normalise each text and name the first rule it breaks.

    In:  DOCUMENTS
    Out: LABELLED: DOCUMENTS, num_bytes bigint of the text, reason string (null for a document that stays), value double,
         threshold double, detail string, masked_<kind> bigint
    """

    def label_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield label_batch(batch, spec)

    return documents.select(*DOCUMENTS).mapInArrow(label_batches, ddl(LABELLED))


def label_batch(batch: pa.RecordBatch, spec: CleanSpec) -> pa.RecordBatch:
    texts = batch.column("text")
    texts = text_rules.normalise(mojibake.repair(texts) if spec.fix_mojibake else texts)
    texts, masked = pii.mask(quality_rules.strip_lines(texts, spec), spec.mask_pii)
    codes, scores = language.identify(texts) if spec.identify_language else ([""] * len(texts), np.zeros(len(texts)))
    names = np.array(codes, object)
    measured = quality_rules.measure(texts, spec)
    reason, value, threshold = quality_rules.first_broken(measured, spec, names, scores)
    nothing = np.zeros(len(texts), np.int64)
    columns = {name: batch.column(name) for name in DOCUMENTS if name not in COMPUTED} | {
        "text": texts,
        "language": pa.array(codes, pa.string()),
        "language_score": pa.array(scores, pa.float64()),
        "num_bytes": pa.compute.binary_length(texts).cast(pa.int64()),
        "reason": pa.array(reason, pa.string()),
        "value": pa.array(value, pa.float64(), mask=np.isnan(value)),
        "threshold": pa.array(threshold, pa.float64(), mask=np.isnan(threshold)),
        "detail": pa.array(np.where(reason == "language", names, ""), pa.string()),
        **{f"masked_{kind}": pa.array(masked.get(kind, nothing), pa.int64()) for kind in pii.KINDS},
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in LABELLED], names=list(LABELLED))
