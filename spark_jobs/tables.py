"""The one place where tables are read and written.

Bytes depend on the rows alone: the number of files follows from the size of the data, rows go to files by a range of a
hash and are sorted inside them, and Spark's random file names are replaced. Cores and input partitions play no part.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyarrow import parquet
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs.errors import DataError
from spark_jobs.job import Job
from spark_jobs.manifests import Column, Handle
from spark_jobs.parquet_footer import sort_encodings
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENT_ORDER, DOCUMENTS, REJECT_ORDER, REJECTS, Schema, ddl

FILE_BYTES = 128 << 20  # uncompressed bytes a file aims at
SMALL_FILE_BYTES = (
    16 << 20
)  # and at least, while there are fewer than SMALL_FILES: a small table is written by several cores
SMALL_FILES = 8
REJECT_BYTES = 200  # of one reject row, roughly
ROW_GROUP_BYTES = 2 << 20  # of documents: what a look-up of one document reads at most, but for very long ones
WRITER_OPTIONS = {"parquet": {"compression": "zstd"}, "orc": {"compression": "zstd"}}
SMALL_GROUPS = {"parquet": {"parquet.block.size": str(ROW_GROUP_BYTES)}, "orc": {}}


def read_table(spark: SparkSession, paths: Sequence[str], table_format: str, schema: Schema) -> DataFrame:
    """The files at `paths` as a table; no files give an empty one."""
    if not paths:
        return spark.createDataFrame([], ddl(schema))
    return spark.read.format(table_format).schema(ddl(schema)).load(list(paths))


def read_data(spark: SparkSession, handle: Handle, schema: Schema) -> DataFrame:
    return read_table(spark, handle.paths("data"), handle.format, schema)


def stage(table: DataFrame, folder: str) -> DataFrame:
    """Compute `table` once, keep it in `folder`, and go on from there (a retry never sees another result)."""
    table.write.mode("overwrite").option("compression", "snappy").parquet(folder)
    return table.sparkSession.read.schema(table.schema).parquet(folder)


def num_staged(folder: str) -> int:
    """Rows of a staged table, from the footers of its files."""
    return sum(parquet.read_metadata(path).num_rows for path in Path(folder).glob("*.parquet"))


def num_files(size_bytes: int) -> int:
    """Follows from the size alone, so that any cluster writes the same files."""
    return max(1, -(-size_bytes // FILE_BYTES), min(SMALL_FILES, size_bytes // SMALL_FILE_BYTES))


def range_of_hex(column: str, parts: int) -> SparkColumn:
    """Which of `parts` equal ranges the first 8 hex digits of `column` fall in, 0-based. Null and empty go first."""
    number = F.coalesce(F.conv(F.substring(column, 1, 8), 16, 10).cast("long"), F.lit(0))
    return ((number * F.lit(parts)) / F.lit(1 << 32)).cast("int")


def range_of_long(column: str, parts: int) -> SparkColumn:
    """Which of `parts` equal ranges a signed 64-bit hash falls in, 0-based."""
    number = F.shiftrightunsigned(F.col(column), 32)
    return ((number * F.lit(parts)) / F.lit(1 << 32)).cast("int")


def write_table(
    table: DataFrame, folder: Path, table_format: str, part: SparkColumn, parts: int, order: Sequence[str],
    small_groups: bool = False,
) -> None:  # fmt: skip
    """Write `parts` files, part-00000.<format> on, each sorted by `order`. `part` is the file a row belongs to."""
    ordered = table.repartitionById(parts, part).sortWithinPartitions(*order)
    save(ordered, folder, table_format, small_groups)


def save(ordered: DataFrame, folder: Path, table_format: str, small_groups: bool = False) -> None:
    """Write the partitions of `ordered` as they are, under stable names."""
    shutil.rmtree(folder, ignore_errors=True)
    options = WRITER_OPTIONS[table_format] | (SMALL_GROUPS[table_format] if small_groups else {})
    ordered.write.format(table_format).options(**options).save(str(folder))
    for leftover in folder.iterdir():
        if leftover.name.startswith((".", "_")):
            leftover.unlink()
    for number, path in enumerate(sorted(folder.iterdir())):
        if table_format == "parquet":
            sort_encodings(path)
        path.rename(folder / f"part-{number:05d}.{table_format}")


def write_rejects(rejects: DataFrame, num_rejects: int, folder: Path) -> None:
    """Write a reject table (columns of REJECTS), always as Parquet."""
    parts = num_files(num_rejects * REJECT_BYTES)
    write_table(rejects.select(*REJECTS), folder, "parquet", range_of_hex("doc_id", parts), parts, REJECT_ORDER)


def columns_of(schema: Schema) -> tuple[Column, ...]:
    return tuple(Column(name=name, type=kind) for name, kind in schema.items())


def counts_of(rows: Iterable[tuple[str | None, int]]) -> dict[str, int]:
    """`in`, `out` and `reject.<reason>` from (reason, number of rows); the reason is None for rows that stay."""
    counts: dict[str | None, int] = defaultdict(int)
    for reason, number in rows:
        counts[reason] += int(number)
    out = counts.pop(None, 0)
    rejected = {f"reject.{reason}": count for reason, count in sorted(counts.items(), key=lambda pair: str(pair[0]))}
    return {"in": out + sum(rejected.values()), "out": out} | rejected


def require_rows(num_rows: int, handle: Handle, what: str) -> None:
    if num_rows == 0:
        raise DataError(f"{handle.address}: {what}; look at the rejects of the steps before it")


def write_documents(job: Job, labelled: DataFrame, table_format: str, rule_version: str) -> Outcome:
    """Split a staged table by `reason` into data/ and rejects/.

    In: DOCUMENTS, num_bytes bigint, reason string (null stays), value double, threshold double, and detail string if any.
    """
    totals = labelled.groupBy("reason").agg(F.count("*").alias("rows"), F.sum("num_bytes").alias("num_bytes")).collect()
    kept_bytes = sum(row["num_bytes"] for row in totals if row["reason"] is None)
    counts = counts_of((row["reason"], row["rows"]) for row in totals)
    return split_documents(job, labelled, counts, kept_bytes, table_format, rule_version)


def split_documents(
    job: Job, labelled: DataFrame, counts: dict[str, int], kept_bytes: int, table_format: str, rule_version: str
) -> Outcome:
    """The same where the totals are known already."""
    kept = labelled.where("reason is null").select(*DOCUMENTS)
    parts = num_files(kept_bytes)
    place = range_of_hex("doc_id", parts)
    write_table(kept, job.out / "data", table_format, place, parts, DOCUMENT_ORDER, small_groups=True)
    rejects = labelled.where("reason is not null").withColumn("step", F.lit(job.name))
    rejects = rejects.withColumn("rule_version", F.lit(rule_version))
    if "detail" not in labelled.columns:
        rejects = rejects.withColumn("detail", F.lit(""))
    write_rejects(rejects, counts["in"] - counts["out"], job.out / "rejects")
    return Outcome(num_rows=counts["out"], format=table_format, columns=columns_of(DOCUMENTS), counts=counts)
