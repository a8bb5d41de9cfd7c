"""Read the sources of a labelled set on the workers: one row an example or a reject (schema READ)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import yaml
import zstandard
from pyspark.sql import DataFrame, SparkSession

from spark_jobs import readers
from spark_jobs.label_spec import MAPPED, LabelSource, LabelSpec
from spark_jobs.labelled_examples import CONTENT, Example
from spark_jobs.labelled_files import file_of, units_of
from spark_jobs.labelled_formats import (
    conll_examples,
    dialogue_examples,
    line_examples,
    relation_examples,
    squad_examples,
)
from spark_jobs.labelled_packages import package_example
from spark_jobs.labelled_tables import table_examples
from spark_jobs.readers import Unit
from spark_jobs.records import Record, Refused
from spark_jobs.schemas import Schema, ddl
from spark_jobs.specs import SourceSpec

PIECE_BYTES = 64 << 20  # larger files of lines and tables are cut, see readers.pieces
BATCH_ROWS = 1024

# `group` and `split` are null where the source tells neither; `reason` is null for an example
READ: Schema = {"source_index": "int", "source": "string", "origin": "string"} | CONTENT | {
    "group": "string", "split": "string", "reason": "string", "measured": "double", "allowed": "double", "detail": "string",
}  # fmt: skip
PIECES: Schema = {"source_index": "int", "path": "string", "first": "bigint", "stop": "bigint", "place": "bigint"}

PIECES_ARROW = pa.schema([
    ("source_index", pa.int32()), ("path", pa.string()), ("first", pa.int64()), ("stop", pa.int64()), ("place", pa.int64())
])  # fmt: skip
WORDS = pa.list_(pa.string())
READ_ARROW = pa.schema([
    ("source_index", pa.int32()), ("source", pa.string()), ("origin", pa.string()), ("text", pa.string()),
    ("pair", pa.string()), ("labels", WORDS), ("value", pa.float64()), ("tokens", WORDS), ("tags", WORDS),
    ("spans", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())]))),
    ("target", pa.string()), ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ("chosen", pa.string()), ("rejected", pa.string()), ("group", pa.string()), ("split", pa.string()),
    ("reason", pa.string()), ("measured", pa.float64()), ("allowed", pa.float64()), ("detail", pa.string()),
])  # fmt: skip


def read_sources(spark: SparkSession, spec: LabelSpec) -> DataFrame:
    """READ. Raises: RequestError if a source has no file."""
    pieces = [
        {"source_index": number, **piece._asdict()}
        for number, source in enumerate(spec.sources)
        for unit in units_of(source)
        for piece in _pieces(source, unit, spec.max_row_bytes)
    ]

    def read_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for piece in batch.to_pylist():
                number = piece.pop("source_index")
                rows = read_unit(number, spec.sources[number], Unit(**piece), spec)
                while some := list(islice(rows, BATCH_ROWS)):
                    yield pa.RecordBatch.from_pylist(some, schema=READ_ARROW)

    table = spark.createDataFrame(pa.Table.from_pylist(pieces, schema=PIECES_ARROW))
    spread = table.repartition(max(1, min(len(pieces), 2 * spark.sparkContext.defaultParallelism)))
    return spread.mapInArrow(read_batches, ddl(READ))


def _pieces(source: LabelSource, unit: str, max_bytes: int) -> list[Unit]:
    if source.kind not in (*MAPPED, "lines"):
        return [Unit(unit)]
    kind: Any = "lines" if source.kind == "jsonl" else source.kind
    as_source = SourceSpec(kind=kind, path=source.path, encoding=source.encoding, delimiter=source.delimiter)
    size = file_of(source, unit).stat().st_size
    return readers.pieces(as_source, unit, size, PIECE_BYTES, max_bytes)


def read_unit(number: int, source: LabelSource, unit: Unit, spec: LabelSpec) -> Iterator[dict[str, Any]]:
    """Rows of READ. Raises nothing about the content of the file: what cannot be used is a row with a reason."""
    origin = unit.path or file_of(source, unit.path).name
    begin = {"source_index": number, "source": source.label, "split": source.split}
    try:
        for found in _examples(origin, source, unit, spec):
            yield begin | _row(found, spec.max_row_bytes)
    except Refused as err:
        if unit.first == 0:  # it is the file that is refused: once
            yield begin | _row(Record(origin, None, err.reason, detail=str(err)), 0)
    except EOFError as err:
        yield begin | _row(Record(origin, None, "truncated", detail=str(err)), 0)
    except (OSError, zlib.error, zstandard.ZstdError, pa.ArrowException, yaml.YAMLError) as err:
        yield begin | _row(Record(origin, None, "unreadable", detail=f"{type(err).__name__}: {err}"[:300]), 0)


def _examples(origin: str, source: LabelSource, unit: Unit, spec: LabelSpec) -> Iterator[Example | Record]:
    if source.kind == "package-topics":
        return iter([package_example(unit.path, source, spec.task)])
    file = file_of(source, unit.path)
    if source.kind in MAPPED:
        return table_examples(origin, file, unit, source, spec.max_row_bytes)
    if source.kind == "lines":
        return line_examples(origin, file, unit, source, spec.max_row_bytes)
    if source.kind == "conll":
        return conll_examples(origin, file, source, spec.max_row_bytes)
    if source.kind == "semeval-relations":
        return relation_examples(origin, file, source, spec.max_row_bytes)
    if source.kind == "squad":
        return squad_examples(origin, file, source, spec.task)
    return dialogue_examples(origin, file)


def _row(found: Example | Record, max_bytes: int) -> dict[str, Any]:
    """A row that UTF-8 cannot hold, or that is too long, becomes a reject."""
    if isinstance(found, Record):
        return {
            "origin": found.origin, "reason": found.reason, "measured": found.value, "allowed": found.threshold,
            "detail": found.detail.encode("utf-8", "replace").decode(),
        }  # fmt: skip
    try:
        size = len(json.dumps(found.fields, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return {"origin": found.origin, "reason": "not_utf8", "detail": "a lone surrogate"}
    if size > max_bytes:
        return {
            "origin": found.origin,
            "reason": "too_long",
            "measured": float(size),
            "allowed": float(max_bytes),
            "detail": "",
        }
    given = {field: cell for field, cell in found.fields.items() if cell is not None}  # a split of the source stays
    return {"origin": found.origin, "detail": "", **given}
