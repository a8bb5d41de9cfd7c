"""Labelled examples of JSON Lines, CSV, Parquet and ORC: one row an example, its columns named by the source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spark_jobs.label_spec import LabelSource
from spark_jobs.labelled_examples import BadField, Example, example_of
from spark_jobs.read_csv import csv_table
from spark_jobs.read_lines import text_lines
from spark_jobs.read_tables import open_table
from spark_jobs.readers import Unit
from spark_jobs.records import Record, Refused
from spark_jobs.specs import SourceSpec

Cells = dict[str, Any]  # name of the column -> cell


def table_examples(
    origin: str, file: Path, unit: Unit, source: LabelSource, max_bytes: int
) -> Iterator[Example | Record]:
    """Raises: Refused if a column is gone; what the readers of part raise about files."""
    wanted = source.columns.given
    for place, cells in _rows(origin, file, unit, source, max_bytes):
        if isinstance(cells, Record):
            yield cells
            continue
        try:
            yield Example(place, example_of({field: cells.get(name) for field, name in wanted.items()}, source))
        except BadField as err:
            yield Record(place, None, "bad_field", detail=str(err)[:200])


def _rows(
    origin: str, file: Path, unit: Unit, source: LabelSource, max_bytes: int
) -> Iterator[tuple[str, Cells | Record]]:
    if source.kind == "jsonl":
        return _json_rows(origin, file, unit, max_bytes)
    if source.kind == "csv":
        return _csv_rows(origin, file, unit, source, max_bytes)
    return _table_rows(origin, file, unit, source)


def _json_rows(origin: str, file: Path, unit: Unit, max_bytes: int) -> Iterator[tuple[str, Cells | Record]]:
    as_lines = SourceSpec(kind="lines", path=str(file), encoding="utf-8")
    for record in text_lines(origin, file, unit.first, unit.stop, as_lines, max_bytes):
        if record.text is None:
            yield record.origin, record
        elif record.text.strip():  # an empty line is no record
            yield record.origin, _parsed(record)


def _parsed(record: Record) -> Cells | Record:
    try:
        value = json.loads(record.text or "")
    except (ValueError, RecursionError) as err:
        return Record(record.origin, None, "bad_json", detail=str(err)[:200])
    if not isinstance(value, dict):
        return Record(record.origin, None, "not_an_object", detail=type(value).__name__)
    return value


def _csv_rows(
    origin: str, file: Path, unit: Unit, source: LabelSource, max_bytes: int
) -> Iterator[tuple[str, Cells | Record]]:
    as_csv = SourceSpec(kind="csv", path=str(file), encoding=source.encoding, delimiter=source.delimiter)
    header, rows = csv_table(origin, file, unit.first, unit.stop, as_csv, max_bytes)
    _require(header, source)
    for row in rows:
        if isinstance(row, Record):
            yield row.origin, row
        else:
            yield row.place, dict(zip(header, row.values, strict=True))


def _table_rows(origin: str, file: Path, unit: Unit, source: LabelSource) -> Iterator[tuple[str, Cells | Record]]:
    table = open_table(source.kind, file)
    _require(table.schema.names, source)
    names = sorted(set(source.columns.given.values()))
    for part in range(unit.first, min(unit.stop, len(table.first_rows))):
        first = table.first_rows[part]
        try:
            columns = [[cell for batch in table.batches(part, name) for cell in batch.to_pylist()] for name in names]
            for number, cells in enumerate(zip(*columns, strict=True)):
                yield f"{origin}@{first + number}", dict(zip(names, cells, strict=True))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
            place = f"{origin}@{first}"
            yield place, Record(place, None, "unreadable", detail=f"{type(err).__name__}: {err}"[:300])


def _require(names: list[str], source: LabelSource) -> None:
    gone = sorted(set(source.columns.given.values()) - set(names))
    if gone:
        raise Refused(
            "no_column",
            f"no column {', '.join(map(repr, gone))}, only {', '.join(names)[:200]}; mend the source's columns",
        )
