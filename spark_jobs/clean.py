"""Clean documents: normalise their text, then apply the Gopher quality rules (kernels and definitions: text_rules.py).

The document id stays the hash of the text as ingested, so a cleaned document can be traced to its source.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_jobs import tables, text_rules
from spark_jobs.job import Job
from spark_jobs.manifests import Documents
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, ddl
from spark_jobs.specs import CleanSpec

RULE_VERSION = "gopher-quality-1"
LABELLED = DOCUMENTS | {"num_bytes": "bigint", "reason": "string", "value": "double", "threshold": "double"}


def clean(job: Job, spec: CleanSpec) -> Outcome:
    documents = job.input("documents", Documents)
    labelled = tables.stage(
        label_documents(tables.read_data(job.spark, documents, DOCUMENTS), spec), job.scratch("labelled")
    )
    return tables.write_documents(job, labelled, documents.format, RULE_VERSION)


def label_documents(documents: DataFrame, spec: CleanSpec) -> DataFrame:
    """Normalise each text and name the first rule it breaks.

    In:  DOCUMENTS
    Out: DOCUMENTS, num_bytes bigint of the text, reason string (null for a document that stays), value double,
         threshold double
    """

    def label_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield label_batch(batch, spec)

    return documents.select(*DOCUMENTS).mapInArrow(label_batches, ddl(LABELLED))


def label_batch(batch: pa.RecordBatch, spec: CleanSpec) -> pa.RecordBatch:
    texts = text_rules.normalise(batch.column("text"))
    reason, value, threshold = first_broken_rule(text_rules.measure(texts), spec)
    columns = {name: batch.column(name) for name in DOCUMENTS} | {
        "text": texts,
        "num_bytes": pa.compute.binary_length(texts).cast(pa.int64()),
        "reason": pa.array(reason, pa.string()),
        "value": pa.array(value, pa.float64(), mask=np.isnan(value)),
        "threshold": pa.array(threshold, pa.float64(), mask=np.isnan(threshold)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def first_broken_rule(
    measures: text_rules.Measures, spec: CleanSpec
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.float64]]:
    """For each text (reason, value, threshold) of the first rule it breaks; (None, nan, nan) if it breaks none."""
    m = measures
    rules = (
        ("empty", m.num_words, 1.0, m.num_words < 1),
        ("too_few_words", m.num_words, spec.min_words, m.num_words < spec.min_words),
        ("too_many_words", m.num_words, spec.max_words, m.num_words > spec.max_words),
        (
            "words_too_short",
            m.mean_word_length,
            spec.min_mean_word_length,
            m.mean_word_length < spec.min_mean_word_length,
        ),
        (
            "words_too_long",
            m.mean_word_length,
            spec.max_mean_word_length,
            m.mean_word_length > spec.max_mean_word_length,
        ),
        ("symbols", m.symbol_word_ratio, spec.max_symbol_word_ratio, m.symbol_word_ratio > spec.max_symbol_word_ratio),
        (
            "bullet_lines",
            m.bullet_line_ratio,
            spec.max_bullet_line_ratio,
            m.bullet_line_ratio > spec.max_bullet_line_ratio,
        ),
        (
            "ellipsis_lines",
            m.ellipsis_line_ratio,
            spec.max_ellipsis_line_ratio,
            m.ellipsis_line_ratio > spec.max_ellipsis_line_ratio,
        ),
        (
            "few_alphabetic_words",
            m.alpha_word_ratio,
            spec.min_alpha_word_ratio,
            m.alpha_word_ratio < spec.min_alpha_word_ratio,
        ),
        ("few_stop_words", m.num_stop_words, spec.min_stop_words, m.num_stop_words < spec.min_stop_words),
    )
    reason = np.full(len(m.num_words), None, object)
    decided = np.zeros(len(reason), bool)
    value, threshold = np.full(len(reason), np.nan), np.full(len(reason), np.nan)
    for name, measured, limit, broken in rules:
        hit = broken & ~decided
        reason[hit], value[hit], threshold[hit] = name, measured[hit], limit
        decided |= hit
    return reason, value, threshold
