"""Clean documents: repair and normalise their text, mask personal data, name the language, score it if a classifier was
trained, then apply the quality rules (cleaned_text.py, language.py, quality_model.py, quality_rules.py).

The document id stays the hash of the text as ingested, so a cleaned document can be traced to its source.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import language, pii, quality_rules, tables
from spark_jobs.cleaned_text import clean_texts
from spark_jobs.job import Job
from spark_jobs.manifests import Documents, QualityClassifier
from spark_jobs.quality_model import QualityModel, load_model
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, Schema, ddl
from spark_jobs.specs import CleanSpec

RULE_VERSION = "quality-4"
COMPUTED = ("text", "language", "language_score", "quality_score")
LABELLED: Schema = DOCUMENTS | {
    "num_bytes": "bigint", "reason": "string", "value": "double", "threshold": "double", "detail": "string",
} | {f"masked_{kind}": "bigint" for kind in pii.KINDS} | {"mended_nul": "bigint", "mended_mojibake": "bigint"}  # fmt: skip


def clean(job: Job, spec: CleanSpec) -> Outcome:
    documents = job.input("documents", Documents)
    texts = tables.read_data(job.spark, documents, DOCUMENTS)
    labelled = tables.stage(label_documents(texts, spec, model_for(job, spec)), job.scratch("labelled"))
    outcome = tables.write_documents(job, labelled, documents.format, RULE_VERSION)
    return outcome.model_copy(update={"counts": outcome.counts | tallies(labelled, spec)})


def tallies(labelled: DataFrame, spec: CleanSpec) -> dict[str, int]:
    """Of the documents that stay: `masked.<kind>` replacements, `mended.nul` and `mended.mojibake` documents."""
    columns = [f"masked_{kind}" for kind in sorted(spec.mask_pii)] + ["mended_nul"]
    columns += ["mended_mojibake"] if spec.fix_mojibake else []
    row = labelled.where("reason is null").agg(*(F.sum(name).alias(name) for name in columns)).first()
    return {name.replace("_", ".", 1): int(row[name] or 0) for name in columns}


def model_for(job: Job, spec: CleanSpec) -> QualityModel | None:
    """What the step before trained, if `spec` asks for a classifier. Raises: RequestError if it is no input of the job."""
    return None if spec.classifier is None else load_model(job.input("classifier", QualityClassifier))


def label_documents(documents: DataFrame, spec: CleanSpec, model: QualityModel | None = None) -> DataFrame:
    """Normalise each text and name the first rule it breaks.

    In:  DOCUMENTS
    Out: LABELLED: DOCUMENTS, num_bytes bigint of the text, reason string (null for a document that stays), value double,
         threshold double, detail string, masked_<kind>, mended_nul, mended_mojibake bigint
    """

    def label_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield label_batch(batch, spec, model)

    return documents.select(*DOCUMENTS).mapInArrow(label_batches, ddl(LABELLED))


def label_batch(batch: pa.RecordBatch, spec: CleanSpec, model: QualityModel | None = None) -> pa.RecordBatch:
    raw = batch.column("text")
    texts, repaired, masked = clean_texts(raw, spec)
    codes, scores = language.identify(texts) if spec.identify_language else ([""] * len(texts), np.zeros(len(texts)))
    names = np.array(codes, object)
    measured = quality_rules.measure(texts, spec, model)
    reason, value, threshold = quality_rules.first_broken(measured, spec, names, scores)
    nothing = np.zeros(len(texts), np.int64)
    columns = {name: batch.column(name) for name in DOCUMENTS if name not in COMPUTED} | {
        "text": texts,
        "language": pa.array(codes, pa.string()),
        "language_score": pa.array(scores, pa.float64()),
        "quality_score": pa.array(measured["quality_score"])
        if model is not None
        else pa.nulls(len(texts), pa.float64()),
        "num_bytes": pc.binary_length(texts).cast(pa.int64()),
        "reason": pa.array(reason, pa.string()),
        "value": pa.array(value, pa.float64(), mask=np.isnan(value)),
        "threshold": pa.array(threshold, pa.float64(), mask=np.isnan(threshold)),
        "detail": pa.array(np.where(reason == "language", names, ""), pa.string()),
        "mended_nul": pc.match_substring(raw, "\0").cast(pa.int64()),
        "mended_mojibake": pc.not_equal(repaired, raw).cast(pa.int64()),
        **{f"masked_{kind}": pa.array(masked.get(kind, nothing), pa.int64()) for kind in pii.KINDS},
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in LABELLED], names=list(LABELLED))
