"""Ingest: the files of the sources that no earlier night has taken, as documents.

Two passes, both on the workers: one hashes the files that are there, one reads those whose hash is new. `seen/` lists
the files taken tonight; the nights before are found through the history.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import python_environment, readers, tables
from spark_jobs.errors import DataError, RequestError
from spark_jobs.job import Job
from spark_jobs.manifests import Corpus, Documents
from spark_jobs.records import NEW_COLUMN, Record
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, SEEN, Schema, ddl
from spark_jobs.specs import IngestSpec, SourceSpec
from spark_jobs.text_encoding import known

RULE_VERSION = "ingest-2"
SPLIT_BYTES = 64 << 20  # larger files are cut into pieces of about this size, as stored; see readers.pieces
BATCH_BYTES = 8 << 20
BATCH_ROWS = 2048
READ_BYTES = 1 << 20
REFUSED_SCHEMAS = ("no_column", "retyped_column")
MAX_NEW_COLUMNS = 1000  # counted of one night

LISTED: Schema = {"source_index": "int", "path": "string"}
PIECES: Schema = LISTED | {"first": "bigint", "stop": "bigint", "place": "bigint"}  # see readers.Unit
HASHED: Schema = LISTED | {"source": "string", "size_bytes": "bigint", "digest": "string"}
LABELLED: Schema = DOCUMENTS | {
    "num_bytes": "bigint", "reason": "string", "value": "double", "threshold": "double", "detail": "string",
}  # fmt: skip


def ingest(job: Job, spec: IngestSpec) -> Outcome:
    """Raises: RequestError if a source's path does not exist or holds no file of its kind; DataError for columns that are
    not as declared, where the source asks for that.
    """
    history = job.input("history", Corpus) if "history" in job.inputs else None
    listed = list_units(spec, num_earlier_nights=len(history.nights) if history else 0)
    hashed = tables.stage(hash_units(_as_table(job.spark, listed), spec), job.scratch("hashed"))
    fresh = hashed.join(_seen(job.spark, history), "digest", how="left_anti") if history else hashed
    labelled = tables.stage(read_units(fresh, spec), job.scratch("labelled"))
    new_columns: dict[str, int] = {}
    if any(source.columns or source.on_drift == "fail" for source in spec.sources):
        new_columns = check_columns(labelled, spec)
        labelled = labelled.where(f"reason is null or reason != '{NEW_COLUMN}'")

    taken = fresh.where("digest != ''")
    num_taken = taken.count()
    parts = tables.num_files(num_taken * tables.REJECT_BYTES)
    order = ("digest", "source", "path")
    tables.write_table(
        taken.select(*SEEN), job.out / "seen", "parquet", tables.range_of_hex("digest", parts), parts, order
    )
    outcome = tables.write_documents(job, labelled, spec.format, RULE_VERSION)
    files = {"files": len(listed), "files_new": num_taken}
    return outcome.model_copy(update={"counts": outcome.counts | files | new_columns})


def check_columns(labelled: DataFrame, spec: IngestSpec) -> dict[str, int]:
    """`column.new.<name>`: files that hold it. Raises: DataError if a source that wants it has another schema than declared."""
    strict = [name_of(source) for source in spec.sources if source.on_drift == "fail"]
    drifted = labelled.where(F.col("reason").isin(NEW_COLUMN, *REFUSED_SCHEMAS))
    first = (
        drifted.where(F.col("source").isin(strict)).orderBy("source", "origin", "detail").first() if strict else None
    )
    if first is not None:
        what = f"new column {first['detail']!r}" if first["reason"] == NEW_COLUMN else first["detail"]
        raise DataError(
            f"source {first['source']!r}, {first['origin']}: {what}; add it to the source's columns, mend the file, "
            "or set on_drift=report"
        )
    files = drifted.where(F.col("reason") == NEW_COLUMN).groupBy("detail").agg(F.count_distinct("source", "origin"))
    counts: dict[str, int] = {}
    for name, count in files.orderBy("detail").limit(MAX_NEW_COLUMNS).collect():
        key = f"column.new.{re.sub(r'[^0-9A-Za-z_.-]', '_', name)[:100]}"  # of what tracking servers take as a name
        counts[key] = counts.get(key, 0) + int(count)
    return counts


def name_of(source: SourceSpec) -> str:
    return source.name or source.kind


def list_units(spec: IngestSpec, num_earlier_nights: int) -> list[tuple[int, str]]:
    """(index of the source, path relative to the source's path) of every file now there. Raises: RequestError."""
    units: list[tuple[int, str]] = []
    for index, source in enumerate(spec.sources):
        if source.kind == "python-environment":
            paths = python_environment.list_units(source.first_night_share + source.nightly_share * num_earlier_nights)
        else:
            paths = _list_files(source)
        units.extend((index, path) for path in paths)
    return units


def _list_files(source: SourceSpec) -> list[str]:
    root = Path(source.path)
    where = f"source {name_of(source)!r}: path {source.path!r}"
    if not source.path:
        raise RequestError(f"source {name_of(source)!r}: path is empty; set it to a file or folder of {source.kind}")
    if source.encoding and not known(source.encoding):
        raise RequestError(
            f"source {name_of(source)!r}: encoding {source.encoding!r} is unknown; wanted one like utf-8"
        )
    if root.is_file():
        return [""]
    if not root.is_dir():
        raise RequestError(f"{where} does not exist; mend ingest.sources or mount it")
    suffixes = readers.SUFFIXES[source.kind]
    paths = [
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root)
        for name in names
        if readers.suffix_of(name, source.kind) in suffixes and not name.startswith(".")
    ]
    if not any(os.access(root / path, os.R_OK) for path in paths):
        raise RequestError(f"{where} holds no readable {' or '.join(suffixes)} file; mend ingest.sources")
    return sorted(paths)


def _as_table(spark: SparkSession, units: list[tuple[int, str]]) -> DataFrame:
    """Spread over the cores; the order and the spread leave no trace in the result."""
    rows = spark.createDataFrame(  # from Arrow: from a list of tuples it would go through a pickled RDD
        pa.Table.from_pylist(
            [{"source_index": index, "path": path} for index, path in units], schema=_arrow_schema(LISTED)
        )
    )
    return rows.repartition(max(1, min(len(units), 2 * spark.sparkContext.defaultParallelism)))


def _seen(spark: SparkSession, history: Corpus) -> DataFrame:
    folders = [history.at(night.ingested.address) for night in history.nights]
    paths = [path for folder in folders for path in Documents.load(folder).paths("seen")]
    return tables.read_table(spark, paths, "parquet", SEEN).select("digest")


def hash_units(units: DataFrame, spec: IngestSpec) -> DataFrame:
    """LISTED -> HASHED: size and xxh3_128 of each file; an empty digest if it cannot be opened (reading it will say why)."""

    def hash_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = [_hash_unit(spec, **unit) for unit in batch.to_pylist()]
            yield pa.RecordBatch.from_pylist(rows, schema=_arrow_schema(HASHED))

    return units.mapInArrow(hash_batches, ddl(HASHED))


def _hash_unit(spec: IngestSpec, source_index: int, path: str) -> dict[str, object]:
    source = spec.sources[source_index]
    size, hasher = 0, xxhash.xxh3_128()
    row = {"source_index": source_index, "source": name_of(source), "path": path}
    try:
        for block in _blocks(source, path):
            hasher.update(block)
            size += len(block)
    except OSError:
        return row | {"size_bytes": 0, "digest": ""}
    return row | {"size_bytes": size, "digest": hasher.hexdigest()}


def _blocks(source: SourceSpec, path: str) -> Iterator[bytes]:
    if source.kind == "python-environment":
        yield python_environment.read_bytes(path)
        return
    with readers.file_of(source, path).open("rb") as stream:
        while block := stream.read(READ_BYTES):
            yield block


def read_units(units: DataFrame, spec: IngestSpec) -> DataFrame:
    """HASHED -> LABELLED: one row a record, `reason` null for a document. Batches are bounded by bytes."""

    def cut_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = [
                piece
                for unit in batch.to_pylist()
                for piece in _pieces(spec, unit["source_index"], unit["path"], unit["size_bytes"])
            ]
            yield pa.RecordBatch.from_pylist(rows, schema=_arrow_schema(PIECES))

    def read_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for piece in batch.to_pylist():
                yield from _read_piece(spec, **piece)

    pieces = units.mapInArrow(cut_batches, ddl(PIECES))
    if any(source.kind in readers.CUT for source in spec.sources):
        pieces = pieces.repartition(2 * units.sparkSession.sparkContext.defaultParallelism)
    return pieces.mapInArrow(read_batches, ddl(LABELLED))


def _pieces(spec: IngestSpec, source_index: int, path: str, size: int) -> Iterator[dict[str, object]]:
    units = readers.pieces(spec.sources[source_index], path, size, SPLIT_BYTES, spec.max_document_bytes)
    return ({"source_index": source_index, **unit._asdict()} for unit in units)


def _read_piece(spec: IngestSpec, source_index: int, **unit: Any) -> Iterator[pa.RecordBatch]:
    source = spec.sources[source_index]
    rows: list[dict[str, object]] = []
    size = 0
    for record in readers.read_unit(source, readers.Unit(**unit), spec.max_document_bytes):
        encoded = b"" if record.text is None else record.text.encode()
        rows.append(_row(source, record, encoded))
        size += len(encoded)
        if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema=_arrow_schema(LABELLED))
            rows, size = [], 0
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=_arrow_schema(LABELLED))


def _row(source: SourceSpec, record: Record, encoded: bytes) -> dict[str, object]:
    return {
        "doc_id": xxhash.xxh3_128_hexdigest(encoded) if record.text is not None else "",
        "source": name_of(source),
        "priority": source.priority,
        "language": "",
        "language_score": 0.0,
        "quality_score": None,
        "num_bytes": len(encoded),
        **record._asdict(),
    }


def _arrow_schema(schema: Schema) -> pa.Schema:
    kinds = {"string": pa.string(), "int": pa.int32(), "bigint": pa.int64(), "double": pa.float64()}
    return pa.schema([(name, kinds[kind]) for name, kind in schema.items()])
