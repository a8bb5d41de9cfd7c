import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.sql.types import DoubleType, IntegerType, LongType, StringType, StructField, StructType

from spark_jobs.expectations import Suite, common_expectations, validate
from spark_jobs.manifests import MANIFEST, CheckReport, Documents
from spark_jobs.specs import CheckSpec
from tests.spark_jobs.workspace import Workspace, files_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

GOOD = [(f"{n:032x}", f"secret text {n}", "web", f"a.jsonl@{n}", 10, "en", 0.9, None) for n in range(5)]
TYPES = {
    "doc_id": StringType(),
    "text": StringType(),
    "source": StringType(),
    "origin": StringType(),
    "priority": IntegerType(),
    "language": StringType(),
    "language_score": DoubleType(),
    "quality_score": DoubleType(),
}


def documents(
    workspace: Workspace, rows: list[tuple[Any, ...]], counts: dict[str, int] | None = None,
    spec: dict[str, Any] | None = None, **types: Any,
) -> Documents:  # fmt: skip
    schema = StructType([StructField(name, kind) for name, kind in (TYPES | types).items()])
    out = workspace.root / "documents/dedup-n1"
    shutil.rmtree(out, ignore_errors=True)
    workspace.spark.createDataFrame(rows, schema).coalesce(1).write.parquet(str(out / "data"))
    for path in (out / "data").iterdir():
        if not path.name.startswith("part-"):
            path.unlink()
    handle = Documents(
        step="dedup", key="n1", night="n1", format="parquet", num_rows=len(rows), files=files_of(out), spec=spec or {}, code={}, libraries={},
        counts={"in": len(rows), "out": len(rows)} if counts is None else counts,
    )  # fmt: skip
    (out / MANIFEST).write_text(handle.canonical())
    return Documents.load(out)


def check(workspace: Workspace, dataset: Documents, **bounds: Any) -> CheckReport:
    report: CheckReport = workspace.run(CheckReport, "check-documents", CheckSpec(**bounds), dataset=dataset)
    return report


def test_check_of_good_documents_passes_and_shows_no_text(workspace: Workspace) -> None:
    report = check(workspace, documents(workspace, GOOD))
    assert (report.success, report.failed, report.num_rows) == (True, (), 5)
    assert report.num_expectations > 10
    page = Path(report.folder("data_docs"), "index.html").read_text()
    results = Path(report.folder(), "results.json").read_text()
    assert "secret" not in page + results
    assert "https://" not in page
    assert json.loads(results)["success"] is True


@pytest.mark.parametrize(
    ("rows", "failed"),
    [
        ([], "expect_table_row_count_to_be_between()"),
        ([(*row[:1], None, *row[2:]) for row in GOOD], "expect_column_values_to_not_be_null(text)"),
        ([(*row[:1], "", *row[2:]) for row in GOOD], "expect_column_value_lengths_to_be_between(text)"),
        ([(*row[:-1], math.nan) for row in GOOD], "expect_column_values_to_be_in_set(quality_score_is_nan)"),
        ([(*row[:-1], 1.5) for row in GOOD], "expect_column_values_to_be_between(quality_score)"),
        ([*GOOD, GOOD[0]], "expect_column_values_to_be_unique(doc_id)"),
        ([("XYZ", *row[1:]) for row in GOOD[:1]], "expect_column_values_to_match_regex(doc_id)"),
    ],
)
def test_check_names_what_is_wrong(workspace: Workspace, rows: list[tuple[Any, ...]], failed: str) -> None:
    report = check(workspace, documents(workspace, rows))
    assert not report.success
    assert failed in report.failed


def test_check_asks_for_scores_only_where_a_classifier_was_asked_for(workspace: Workspace) -> None:
    scored = {"classifier": {"min_score": 0.0}}
    missing = check(workspace, documents(workspace, GOOD, spec=scored))
    assert missing.failed == ("expect_column_values_to_not_be_null(quality_score)",)
    rows = [(*row[:-1], 0.5) for row in GOOD]
    assert check(workspace, documents(workspace, rows, spec=scored)).success


def test_check_refuses_another_type_or_column(workspace: Workspace) -> None:
    report = check(workspace, documents(workspace, GOOD, priority=LongType()))
    assert report.failed == ("expect_column_values_to_be_in_set(is_schema_right)",)


def test_check_refuses_lost_rows_and_too_many_rejects(workspace: Workspace) -> None:
    report = check(workspace, documents(workspace, GOOD, {"in": 11, "out": 5, "reject.empty": 5}), max_reject_ratio=0.4)
    assert report.failed == (
        "expect_column_values_to_be_between(reject_ratio)", "expect_column_values_to_be_in_set(rows_lost)",
    )  # fmt: skip


def test_check_refuses_nan_which_passes_a_lower_bound(spark: "SparkSession") -> None:
    table = spark.createDataFrame([(1.0,), (math.nan,)], StructType([StructField("score", DoubleType())]))
    frame, expectations = common_expectations(table, {"score": "double"}, 2, CheckSpec())
    _, failed = validate(Suite(frame, expectations), "scores")
    assert failed == ["expect_column_values_to_be_in_set(score_is_nan)"]
