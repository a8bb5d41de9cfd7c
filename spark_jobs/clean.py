"""Clean documents: repair and normalise their text, mask personal data, name the language, then apply the Gopher quality
rules (kernels and definitions: mojibake.py, text_rules.py, pii.py, language.py).

The document id stays the hash of the text as ingested, so a cleaned document can be traced to its source.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import language, mojibake, pii, tables, text_rules
from spark_jobs.job import Job
from spark_jobs.manifests import Documents
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, Schema, ddl
from spark_jobs.specs import CleanSpec

RULE_VERSION = "gopher-quality-2"
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
    texts, masked = pii.mask(texts, spec.mask_pii)
    codes, scores = language.identify(texts) if spec.identify_language else ([""] * len(texts), np.zeros(len(texts)))
    names = np.array(codes, object)
    reason, value, threshold = first_broken_rule(text_rules.measure(texts), spec, names, scores)
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


def first_broken_rule(
    measures: text_rules.Measures, spec: CleanSpec, languages: NDArray[np.object_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.float64]]:
    """For each text (reason, value, threshold) of the first rule it breaks; (None, nan, nan) if it breaks none.

    languages: str[n], empty where not identified; scores: float64[n] in [0, 1]
    """
    m = measures
    allowed = np.isin(languages, spec.languages) if spec.languages else np.ones(len(languages), bool)
    is_english = (languages == "en") | (languages == "")
    rules = (
        ("empty", m.num_words, 1.0, m.num_words < 1),
        ("language", scores, spec.min_language_score, ~allowed | (scores < spec.min_language_score)),
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
        (
            "few_stop_words",
            m.num_stop_words,
            spec.min_stop_words,
            is_english & (m.num_stop_words < spec.min_stop_words),
        ),
    )
    reason = np.full(len(m.num_words), None, object)
    decided = np.zeros(len(reason), bool)
    value, threshold = np.full(len(reason), np.nan), np.full(len(reason), np.nan)
    for name, measured, limit, broken in rules:
        hit = broken & ~decided
        reason[hit], value[hit], threshold[hit] = name, measured[hit], limit
        decided |= hit
    return reason, value, threshold
