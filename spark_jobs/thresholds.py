"""What each candidate threshold of each quality rule would remove from tonight's documents, one rule at a time.

Candidates are multiples of the threshold in the spec, or of the rule's default where its family is off; of a classifier's score
tenths. Texts are those that cleaning leaves; C4's line rules are applied only if they are on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import functions as F

from spark_jobs import language, quality_rules, tables
from spark_jobs.clean import model_for
from spark_jobs.cleaned_text import clean_texts
from spark_jobs.job import Job
from spark_jobs.manifests import Documents
from spark_jobs.quality_model import QualityModel
from spark_jobs.quality_rules import Rule
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, Schema, ddl
from spark_jobs.specs import C4Spec, CleanSpec, FineWebSpec, RepetitionSpec

TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
FACTORS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)

CANDIDATES: Schema = {
    "rule": "string", "bound": "string", "threshold": "double", "is_chosen": "boolean", "is_on": "boolean",
    "num_documents": "bigint", "num_bytes": "bigint", "of_documents": "bigint", "of_bytes": "bigint",
}  # fmt: skip


def thresholds(job: Job, spec: CleanSpec) -> Outcome:
    """Writes data/: CANDIDATES, ordered by rule and threshold."""
    documents = job.input("documents", Documents)
    candidates, model = candidates_of(spec), model_for(job, spec)

    def count_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield count_batch(batch.column("text"), spec, candidates, model)

    texts = tables.read_data(job.spark, documents, DOCUMENTS).select("text")
    counted = texts.mapInArrow(count_batches, ddl(CANDIDATES))
    keys = ("rule", "bound", "threshold", "is_chosen", "is_on")
    sums = [F.sum(name).alias(name) for name in CANDIDATES if name not in keys]
    total = counted.groupBy(*keys).agg(*sums).select(*CANDIDATES)
    tables.write_table(total, job.out / "data", "parquet", F.lit(0), 1, ("rule", "threshold"))
    rows = len(candidates)
    return Outcome(num_rows=rows, format="parquet", columns=tables.columns_of(CANDIDATES))


def with_all_rules(spec: CleanSpec) -> CleanSpec:
    return spec.model_copy(
        update={
            "repetition": spec.repetition or RepetitionSpec(), "c4": spec.c4 or C4Spec(), "fineweb": spec.fineweb or FineWebSpec(),
        }
    )  # fmt: skip


def candidates_of(spec: CleanSpec) -> list[tuple[Rule, float, bool, bool]]:
    """(rule, threshold, whether it is the spec's, whether the rule is on), each once."""
    on = {rule.reason for rule, _ in quality_rules.active(spec)}
    found = []
    for rule, chosen in quality_rules.active(with_all_rules(spec)):
        limits = {round(chosen * factor, 4) for factor in FACTORS} | {chosen}
        if chosen == 0:
            limits = {0.0, 0.5, 1.0}
        if rule.measure == "quality_score":
            limits = {*TENTHS, chosen}
        is_ratio = rule.measure.endswith("_ratio") and rule.measure not in ("symbol_word_ratio", "line_word_ratio")
        found += [
            (rule, limit, limit == chosen, rule.reason in on)
            for limit in sorted(limits)
            if not (is_ratio and limit > 1)
        ]
    return found


def count_batch(
    texts: pa.Array,
    spec: CleanSpec,
    candidates: list[tuple[Rule, float, bool, bool]],
    model: QualityModel | None = None,
) -> pa.RecordBatch:
    """One row a candidate, with what it alone would remove of these texts."""
    texts = clean_texts(texts, spec).texts
    measured = quality_rules.measure(texts, with_all_rules(spec), model)
    codes = language.identify(texts)[0] if spec.identify_language else [""] * len(texts)
    languages = np.array(codes, object)
    sizes = pa.compute.binary_length(texts).to_numpy(zero_copy_only=False)
    rows = []
    for rule, limit, is_chosen, is_on in candidates:
        hit = quality_rules.asked(rule, measured, languages) & quality_rules.is_broken(
            rule, measured[rule.measure], limit
        )
        rows.append(
            (
                rule.reason,
                rule.bound,
                limit,
                is_chosen,
                is_on,
                int(hit.sum()),
                int(sizes[hit].sum()),
                len(texts),
                int(sizes.sum()),
            )
        )
    columns = zip(*rows, strict=True)
    kinds = {"string": pa.string(), "double": pa.float64(), "boolean": pa.bool_(), "bigint": pa.int64()}
    arrays = [pa.array(column, kinds[kind]) for column, kind in zip(columns, CANDIDATES.values(), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=list(CANDIDATES))
