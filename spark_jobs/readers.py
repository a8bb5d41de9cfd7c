"""Readers: from one unit of a source (a file, or a piece of one) to records. No Spark.

Nothing here aborts a file: what cannot be used becomes a record with a reason, and the next line, row or file goes on.
Places inside a file are byte offsets (of the decompressed stream) for lines and row numbers for tables.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import zstandard
from pyarrow import orc, parquet

from spark_jobs import python_environment
from spark_jobs.specs import SourceSpec

SUFFIXES = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "text": (".txt", ".text", ".md", ".rst"),
    "parquet": (".parquet",),
    "orc": (".orc",),
}
COMPRESSED = (".gz", ".zst")  # of jsonl and text
READ_BYTES = {".gz": 1 << 16, ".zst": 1 << 12}  # bounds what one read can expand to: gzip 1:1032, zstd 1:32768
BLOCK_BYTES = 1 << 20
BATCH_ROWS = 1024
ESCAPED = 6  # bytes that JSON may take for one byte of text: \u00XX


class Record(NamedTuple):
    """A document (`reason` None), or what stands for it among the rejects."""

    origin: str
    text: str | None
    reason: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str = ""


class Unit(NamedTuple):
    """`path` relative to the source's path; bytes [first, stop) of an uncompressed file of lines, else the whole file."""

    path: str
    first: int
    stop: int


def file_of(source: SourceSpec, path: str) -> Path:
    """`path` is empty when the source's path is itself a file."""
    return Path(source.path) / path if path else Path(source.path)


def origin_of(source: SourceSpec, path: str) -> str:
    return path or Path(source.path).name


def read_unit(source: SourceSpec, unit: Unit, max_bytes: int) -> Iterator[Record]:
    """The records of one unit. Raises nothing about the content of the file."""
    origin = origin_of(source, unit.path)
    try:
        for record in _raw_records(source, unit, origin, max_bytes):
            yield _checked(record, max_bytes)
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
        limit = ESCAPED * max_bytes + BLOCK_BYTES
        for offset, line in lines(decompressed(file, unit.first), unit.first, unit.stop, limit):
            if line is None or line.strip():  # an empty line is no record
                yield _json_record(f"{origin}@{offset}", line, source.text_column, limit)
    elif source.kind == "text":
        yield _text_record(origin, file, max_bytes)
    else:
        batches = _parquet_batches if source.kind == "parquet" else _orc_batches
        yield from _table_records(origin, batches(file, source.text_column))


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


def decompressed(file: Path, first: int = 0) -> Iterator[bytes]:
    """The file's bytes from `first` on in blocks, decompressed by suffix (several members or frames in a row are one stream).

    Raises: EOFError if the archive ends too early, after yielding what came before; zlib.error, ZstdError, OSError.
    """
    with file.open("rb") as stream:
        if file.suffix not in COMPRESSED:
            stream.seek(first)
            while block := stream.read(BLOCK_BYTES):
                yield block
            return
        opener: Any = _gzip_member if file.suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj
        member, begun = opener(), False
        while block := stream.read(READ_BYTES[file.suffix]):
            while block:
                if member.eof:
                    block = block.lstrip(b"\0")  # gzip allows padding between members
                    if not block:
                        break
                    member = opener()
                begun = True
                if out := member.decompress(block):
                    yield out
                block = member.unused_data if member.eof else b""
        if not (begun and member.eof):
            raise EOFError("the archive ends before its end mark; what came before is kept")


def _gzip_member() -> Any:
    return zlib.decompressobj(wbits=31)


def lines(blocks: Iterable[bytes], first: int, stop: int, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line without LF) of each line that starts in [first, stop); None for a line longer than `limit`.

    `blocks` start at byte `first`. A caller who cuts a file must cut it at the starts of lines (see `line_start`).
    """
    offset, size = first, 0
    held: list[bytes] = []
    for block in blocks:
        begin = 0
        while (end := block.find(b"\n", begin)) >= 0:
            size += end - begin
            yield offset, b"".join((*held, block[begin:end])) if size <= limit else None
            offset, held, size, begin = offset + size + 1, [], 0, end + 1
            if offset >= stop:
                return
        size += len(block) - begin
        held = [*held, block[begin:]] if size <= limit else []
    if size:
        yield offset, b"".join(held) if size <= limit else None


def line_start(file: Path, near: int) -> int:
    """The first start of a line at or after byte `near` of an uncompressed file (its size if there is none)."""
    if near == 0:
        return 0
    with file.open("rb") as stream:
        stream.seek(near - 1)
        place = near - 1
        while block := stream.read(BLOCK_BYTES):
            found = block.find(b"\n")
            if found >= 0:
                return place + found + 1
            place += len(block)
    return place


def _json_record(origin: str, line: bytes | None, key: str, limit: int) -> Record:
    if line is None:
        return Record(origin, None, "too_long", threshold=float(limit), detail="a line without end")
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as err:
        return Record(origin, None, "not_utf8", detail=f"byte {err.start} of the line")
    except (ValueError, RecursionError) as err:
        return Record(origin, None, "bad_json", detail=str(err)[:200])
    if not isinstance(value, dict):
        return Record(origin, None, "not_an_object", detail=type(value).__name__)
    return _field_record(origin, value.get(key), f"key {key!r}")


def _field_record(origin: str, text: Any, what: str) -> Record:
    if text is None:
        return Record(origin, None, "no_text", detail=f"{what} is missing or null")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as err:
            return Record(origin, None, "not_utf8", detail=f"byte {err.start} of the text")
    if not isinstance(text, str):
        return Record(origin, None, "text_not_a_string", detail=f"{what} is {type(text).__name__}")
    return Record(origin, text)


def _text_record(origin: str, file: Path, max_bytes: int) -> Record:
    held: list[bytes] = []
    size = 0
    for block in decompressed(file):
        held.append(block)
        size += len(block)
        if size > max_bytes:  # the rest is not read: the document is lost either way
            return Record(origin, None, "too_long", float(size), float(max_bytes), "at least this long")
    try:
        return Record(origin, b"".join(held).decode())
    except UnicodeDecodeError as err:
        return Record(origin, None, "not_utf8", detail=f"byte {err.start}")


def _table_records(origin: str, batches: Iterator[pa.Array]) -> Iterator[Record]:
    row = 0
    for column in batches:
        for place, scalar in enumerate(column):
            try:
                text = scalar.as_py()
            except UnicodeDecodeError as err:
                yield Record(f"{origin}@{row + place}", None, "not_utf8", detail=f"byte {err.start} of the text")
            else:
                yield _field_record(f"{origin}@{row + place}", text, "the column")
        row += len(column)


def _parquet_batches(file: Path, name: str) -> Iterator[pa.Array]:
    with parquet.ParquetFile(file) as table:
        _require_column(table.schema_arrow.names, name)
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[name], use_threads=False):
            yield batch.column(0)


def _orc_batches(file: Path, name: str) -> Iterator[pa.Array]:
    table = orc.ORCFile(file)
    _require_column(table.schema.names, name)
    for stripe in range(table.nstripes):
        yield table.read_stripe(stripe, columns=[name]).column(0)


def _require_column(names: list[str], name: str) -> None:
    if name not in names:
        raise pa.ArrowInvalid(f"no column {name!r}, only {', '.join(names)}; set text_column")
