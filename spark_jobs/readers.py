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
from spark_jobs.read_csv import csv_rows, row_starts
from spark_jobs.read_lines import json_lines, text_lines
from spark_jobs.read_pages import archive_cuts, archive_records, html_file, text_file
from spark_jobs.read_tables import table_ranges, table_rows
from spark_jobs.records import Record, Refused
from spark_jobs.specs import SourceSpec

SUFFIXES = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "lines": (".txt", ".text", ".lines"),
    "text": (".txt", ".text", ".md", ".rst"),
    "csv": (".csv", ".tsv"),
    "html": (".html", ".htm", ".xhtml"),
    "warc": (".warc", ".wet", ".arc"),
    "parquet": (".parquet",),
    "orc": (".orc",),
}
TABLES = ("parquet", "orc")  # with their own compression
CUT = ("jsonl", "lines", "csv", "warc", *TABLES)  # kinds whose large files are read in pieces
END = 1 << 62


class Unit(NamedTuple):
    """`path` relative to the source's path; bytes [first, stop) of a file of lines or an archive, counted after decompression,
    or row groups or stripes [first, stop) of a table. `place`: the byte of the file at which `first` stands, if it is packed.
    """

    path: str
    first: int = 0
    stop: int = END
    place: int = 0


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


def pieces(source: SourceSpec, path: str, size: int, piece_bytes: int, max_bytes: int) -> list[Unit]:
    """The units that a file of `size` bytes is read in: together they give the records of the whole, once each.

    They are about `piece_bytes` large and begin where a line, row, record, row group or stripe does.
    """
    file = file_of(source, path)
    packed = source.kind not in TABLES and file.suffix in COMPRESSED
    if size <= piece_bytes or source.kind not in CUT or (packed and source.kind != "warc"):
        return [Unit(path)]
    if source.kind in TABLES:
        return [Unit(path, first, stop) for first, stop in table_ranges(source.kind, file, piece_bytes)]
    if source.kind == "warc":
        begins = [(cut.first, cut.place) for cut in archive_cuts(file, max_bytes, piece_bytes)]
    elif source.kind == "csv" and source.quoted_newlines:
        begins = [(first, first) for first in _row_cuts(source, file, piece_bytes, max_bytes)]
    else:
        starts = {line_start(file, near) for near in range(0, size, piece_bytes)} - {size}
        begins = [(first, first) for first in sorted(starts)]
    stops = [*(first for first, _ in begins[1:]), END]
    return [Unit(path, first, stop, place) for (first, place), stop in zip(begins, stops, strict=True)]


def _row_cuts(source: SourceSpec, file: Path, piece_bytes: int, max_bytes: int) -> list[int]:
    found = [0]
    try:
        for first in row_starts(file, source, max_bytes):
            if first >= found[-1] + piece_bytes:
                found.append(first)
    except (Refused, OSError):  # reading it will say why
        pass
    return found


def read_unit(source: SourceSpec, unit: Unit, max_bytes: int) -> Iterator[Record]:
    """The records of one unit. Raises nothing about the content of the file."""
    origin = origin_of(source, unit.path)
    try:
        for record in _raw_records(source, unit, origin, max_bytes):
            yield _checked(record, max_bytes)
    except Refused as err:
        if unit.first == 0:  # it is the file that is refused: once
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
        yield from archive_records(origin, file, unit.first, unit.stop, unit.place, source, max_bytes)
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
