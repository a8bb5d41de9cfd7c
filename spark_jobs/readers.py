"""Readers: from one unit of a source (a file, or a piece of one) to records. No Spark.

Nothing here aborts a file: what cannot be used becomes a record with a reason, and the next line, row or page goes on.
Places inside a file are byte offsets (of the decompressed stream) for lines and archives, and row numbers for tables.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import zstandard

from spark_jobs import python_environment
from spark_jobs.byte_streams import COMPRESSED, line_start
from spark_jobs.read_csv import csv_rows
from spark_jobs.read_lines import json_lines, text_lines
from spark_jobs.read_pages import archive_records, html_file, text_file
from spark_jobs.read_tables import row_group_ranges, table_rows
from spark_jobs.records import Record, Refused
from spark_jobs.specs import SourceSpec

SUFFIXES = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "lines": (".txt", ".text", ".lines"),
    "text": (".txt", ".text", ".md", ".rst"),
    "csv": (".csv", ".tsv"),
    "html": (".html", ".htm", ".xhtml"),
    "warc": (".warc", ".wet"),
    "parquet": (".parquet",),
    "orc": (".orc",),
}
TABLES = ("parquet", "orc")  # with their own compression
END = 1 << 62


class Unit(NamedTuple):
    """`path` relative to the source's path; bytes [first, stop) of an uncompressed file of lines, row groups [first, stop)
    of a Parquet file, else the whole file.
    """

    path: str
    first: int
    stop: int


def file_of(source: SourceSpec, path: str) -> Path:
    """`path` is empty when the source's path is itself a file."""
    return Path(source.path) / path if path else Path(source.path)


def origin_of(source: SourceSpec, path: str) -> str:
    return path or Path(source.path).name


def suffix_of(name: str, kind: str) -> str:
    """The suffix that tells the kind, without that of a compression."""
    path = Path(name)
    if kind not in TABLES and path.suffix in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix.lower()


def pieces(source: SourceSpec, file: Path, size: int, piece_bytes: int) -> list[tuple[int, int]]:
    """(first, stop) of the units that a file of `size` bytes is read in: cut at starts of lines, or between row groups."""
    if size > piece_bytes and source.kind == "parquet":
        return row_group_ranges(file, piece_bytes)
    by_lines = source.kind in ("jsonl", "lines") or (source.kind == "csv" and not source.quoted_newlines)
    if size <= piece_bytes or not by_lines or file.suffix in COMPRESSED:
        return [(0, END)]
    starts = sorted({line_start(file, near) for near in range(0, size, piece_bytes)} - {size})
    return list(zip(starts, [*starts[1:], END], strict=True))


def read_unit(source: SourceSpec, unit: Unit, max_bytes: int) -> Iterator[Record]:
    """The records of one unit. Raises nothing about the content of the file."""
    origin = origin_of(source, unit.path)
    try:
        for record in _raw_records(source, unit, origin, max_bytes):
            yield _checked(record, max_bytes)
    except Refused as err:
        yield Record(origin, None, err.reason, detail=str(err))
    except EOFError as err:
        yield Record(origin, None, "truncated", detail=str(err))
    except (OSError, zlib.error, zstandard.ZstdError, pa.ArrowException, SyntaxError) as err:
        yield Record(origin, None, "unreadable", detail=f"{type(err).__name__}: {err}"[:300])


def _raw_records(source: SourceSpec, unit: Unit, origin: str, max_bytes: int) -> Iterator[Record]:
    if source.kind == "python-environment":
        yield Record(unit.path, python_environment.read_text(unit.path))
        return
    file = file_of(source, unit.path)
    if source.kind == "jsonl":
        yield from json_lines(origin, file, unit.first, unit.stop, source, max_bytes)
    elif source.kind == "lines":
        yield from text_lines(origin, file, unit.first, unit.stop, source, max_bytes)
    elif source.kind == "csv":
        yield from csv_rows(origin, file, unit.first, unit.stop, source, max_bytes)
    elif source.kind == "text":
        yield from text_file(origin, file, source, max_bytes)
    elif source.kind == "html":
        yield from html_file(origin, file, source, max_bytes)
    elif source.kind == "warc":
        yield from archive_records(origin, file, source, max_bytes)
    else:
        yield from table_rows(origin, file, unit.first, unit.stop, source)


def _checked(record: Record, max_bytes: int) -> Record:
    """Turn a text that is too long, or that UTF-8 cannot hold, into a reject."""
    if record.text is None:
        return record
    try:
        size = len(record.text.encode())
    except UnicodeEncodeError:
        return Record(record.origin, None, "not_utf8", detail="a lone surrogate")
    if size > max_bytes:
        return Record(record.origin, None, "too_long", float(size), float(max_bytes))
    return record
