"""Great Expectations between two steps: what must hold of documents and of token shards before anything uses them.

Strict where the library is not: a suite that is empty or answers for fewer expectations than it has, a table without rows,
a column of another type, a NaN, and an exception inside an expectation are all failures. Reports carry counts, never values
of the data, and nothing that differs between two honest runs.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import data_docs
from spark_jobs.job import Job
from spark_jobs.manifests import Documents, Handle, TokenShards
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, NULLABLE, SEQUENCES, Schema
from spark_jobs.specs import CheckSpec

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.expectations.expectation import Expectation

RESULT_FORMAT = {"result_format": "BASIC", "partial_unexpected_count": 0}  # counts only: no text in a report
FLOATS = ("float", "double")


@dataclass(frozen=True)
class Suite:
    """A frame of plain columns, and the expectations about it."""

    frame: Any  # DataFrame of Spark, or of pandas for a handful of facts
    expectations: list[Expectation]


def check_documents(job: Job, spec: CheckSpec) -> Outcome:
    documents = job.input("dataset", Documents)
    table = _read(job, documents)
    suites = [facts_suite(documents, table, DOCUMENTS, spec)]
    if schema_matches(table, DOCUMENTS):
        suites.append(documents_suite(table, documents.num_rows, spec, was_scored(documents)))
    return report(job, documents, suites)


def check_tokens(job: Job, spec: CheckSpec) -> Outcome:
    tokens = job.input("dataset", TokenShards)
    table = _read(job, tokens)
    suites = [facts_suite(tokens, table, SEQUENCES, spec)]
    if schema_matches(table, SEQUENCES):
        suites.append(tokens_suite(table, tokens, spec))
    return report(job, tokens, suites)


def _read(job: Job, handle: Handle) -> DataFrame:
    """With the schema the files have, not the one they should have."""
    return job.spark.read.format(handle.format).load(handle.paths("data"))


def schema_matches(table: DataFrame, schema: Schema) -> bool:
    return {field.name: field.dataType.simpleString() for field in table.schema} == schema


def facts_suite(handle: Handle, table: DataFrame, schema: Schema, spec: CheckSpec) -> Suite:
    """What the manifests say, one row for the step and each step of documents before it: nothing lost, not too much refused."""
    import great_expectations.expectations as gxe
    import pandas as pd

    rows = []
    step: Handle | None = handle
    while step is not None:
        counts = step.counts
        refused = sum(count for name, count in counts.items() if name.startswith("reject."))
        rows.append(
            {
                "step": step.step,
                "rows_lost": rows_lost(step, refused),
                "reject_ratio": refused / max(counts.get("in", 0), 1),
                "is_schema_right": schema_matches(table, schema) if step is handle else True,
            }
        )
        before = step.parent("documents")
        step = Documents.load(step.at(before.address)) if before else None
    return Suite(
        pd.DataFrame(rows),
        [
            gxe.ExpectColumnValuesToBeInSet(column="is_schema_right", value_set=[True]),
            gxe.ExpectColumnValuesToBeInSet(column="rows_lost", value_set=[0]),
            gxe.ExpectColumnValuesToBeBetween(column="reject_ratio", min_value=0, max_value=spec.max_reject_ratio),
        ],
    )


def rows_lost(handle: Handle, num_refused: int) -> int:
    """Rows of which the counts of a step do not say what became of them; -1 if a count is missing."""
    names = ("documents", "trained", "heldout") if isinstance(handle, TokenShards) else ("in", "out")
    if not handle.counts.keys() >= set(names):
        return -1
    whole, *parts = (handle.counts[name] for name in names)
    return whole - sum(parts) - num_refused


def was_scored(documents: Documents) -> bool:
    """Whether a quality classifier scored these documents, by the specs of the steps they went through."""
    if documents.spec.get("classifier"):
        return True
    before = documents.parent("documents")
    return before is not None and was_scored(Documents.load(documents.at(before.address)))


def documents_suite(table: DataFrame, num_rows: int, spec: CheckSpec, is_scored: bool) -> Suite:
    import great_expectations.expectations as gxe

    frame, expectations = common_expectations(table, DOCUMENTS, num_rows, spec)
    expectations += [
        gxe.ExpectColumnValuesToBeUnique(column="doc_id"),
        gxe.ExpectColumnValuesToMatchRegex(column="doc_id", regex="^[0-9a-f]{32}$"),
        gxe.ExpectColumnValueLengthsToBeBetween(column="text", min_value=1),
        gxe.ExpectColumnValueLengthsToBeBetween(column="source", min_value=1, max_value=64),
        gxe.ExpectColumnValueLengthsToBeBetween(column="origin", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="priority", min_value=0, max_value=1000),
        gxe.ExpectColumnValuesToBeBetween(column="quality_score", min_value=0, max_value=1),
    ]
    if is_scored:
        expectations.append(gxe.ExpectColumnValuesToNotBeNull(column="quality_score"))
    return Suite(frame, expectations)


def tokens_suite(table: DataFrame, tokens: TokenShards, spec: CheckSpec) -> Suite:
    import great_expectations.expectations as gxe

    frame, expectations = common_expectations(table, SEQUENCES, tokens.num_rows, spec)
    covered = F.aggregate("doc_lengths", F.lit(0), lambda total, length: total + length)
    frame = frame.select(
        *SEQUENCES,
        F.size("tokens").alias("num_tokens"),
        (F.size("tokens") - covered).alias("tokens_of_no_document"),
        (F.size("doc_ids") - F.size("doc_lengths")).alias("ids_without_length"),
        F.array_min("tokens").alias("least_token"),
        F.array_max("tokens").alias("greatest_token"),
    )
    expectations += [
        gxe.ExpectColumnValuesToBeUnique(column="seq_id"),
        gxe.ExpectColumnValuesToBeBetween(column="seq_id", min_value=0, max_value=tokens.num_rows - 1),
        gxe.ExpectColumnValuesToBeBetween(column="num_tokens", min_value=1, max_value=tokens.seq_len),
        gxe.ExpectColumnSumToBeBetween(column="num_tokens", min_value=tokens.num_tokens, max_value=tokens.num_tokens),
        gxe.ExpectColumnValuesToBeInSet(column="tokens_of_no_document", value_set=[0]),
        gxe.ExpectColumnValuesToBeInSet(column="ids_without_length", value_set=[0]),
        gxe.ExpectColumnValuesToBeBetween(column="least_token", min_value=0),
        gxe.ExpectColumnValuesToBeBetween(column="greatest_token", max_value=tokens.vocab_size - 1),
    ]
    return Suite(frame, expectations)


def common_expectations(
    table: DataFrame, schema: Schema, num_rows: int, spec: CheckSpec
) -> tuple[DataFrame, list[Expectation]]:
    """Row bounds, the manifest's row count, no null but in NULLABLE, and no NaN (which passes every comparison upwards)."""
    import great_expectations.expectations as gxe

    expectations: list[Expectation] = [
        gxe.ExpectTableRowCountToBeBetween(min_value=spec.min_rows, max_value=spec.max_rows),
        gxe.ExpectTableRowCountToEqual(value=num_rows),
        *(gxe.ExpectColumnValuesToNotBeNull(column=name) for name in schema if name not in NULLABLE),
    ]
    floats = [name for name, kind in schema.items() if kind in FLOATS]
    for name in floats:
        table = table.withColumn(f"{name}_is_nan", F.isnan(name))
        expectations.append(gxe.ExpectColumnValuesToBeInSet(column=f"{name}_is_nan", value_set=[False]))
    return table, expectations


def validate(suite: Suite, name: str) -> tuple[ExpectationSuiteValidationResult, list[str]]:
    """(result, names of what failed). Whatever is missing from the result counts as failed."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    if isinstance(suite.frame, DataFrame):
        source = context.data_sources.add_spark(name, persist=False)
    else:
        source = context.data_sources.add_pandas(name)
    batches = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
    expectations = gx.ExpectationSuite(name=name, expectations=suite.expectations)
    definition = gx.ValidationDefinition(name=name, data=batches, suite=context.suites.add(expectations))
    definition = context.validation_definitions.add(definition)
    result = definition.run(batch_parameters={"dataframe": suite.frame}, result_format=RESULT_FORMAT)
    return result, failures(result, len(suite.expectations))


def failures(result: ExpectationSuiteValidationResult, num_expected: int) -> list[str]:
    """Names of failed expectations, and `suite_is_empty`, `results_are_missing`, `no_rows` where the library says nothing."""
    failed = [
        data_docs.name_of(one)
        for one in result.results
        if not one.success or one.exception_info.get("raised_exception")
    ]
    if num_expected == 0:
        failed.append("suite_is_empty")
    if len(result.results) != num_expected:
        failed.append(f"results_are_missing({num_expected - len(result.results)})")
    if any(one.result.get("element_count") == 0 for one in result.results):
        failed.append("no_rows")
    return failed


def report(job: Job, dataset: Handle, suites: list[Suite]) -> Outcome:
    """Validate, and leave data/results.json and data_docs/index.html."""
    results, failed = [], []
    for number, suite in enumerate(suites):
        result, names = validate(suite, f"{job.name}-{number}")
        results += result.results
        failed += names
    page = data_docs.merged(results, job.name, dataset.address, job.night)
    for folder in ("data", "data_docs"):
        (job.out / folder).mkdir(parents=True)
    text = json.dumps(data_docs.as_json(page, failed), indent=1, sort_keys=True, allow_nan=False)
    (job.out / "data" / "results.json").write_text(text + "\n")
    (job.out / "data_docs" / "index.html").write_text(data_docs.as_html(page))
    return Outcome(
        num_rows=dataset.num_rows,
        format="json",
        fields={
            "checked": dataset.address,
            "success": not failed,
            "num_expectations": len(results),
            "failed": tuple(sorted(failed)),
        },
    )
