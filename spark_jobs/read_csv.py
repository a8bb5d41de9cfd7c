"""CSV with a header line (RFC 4180, any delimiter and encoding): one row, one document.

Quoted fields may hold line ends: where rows begin is found by a pass over the file, unless the source says that no field
of it holds one.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from spark_jobs.byte_streams import BLOCK_BYTES, COMPRESSED, decompressed, head, lines
from spark_jobs.read_lines import encoding_of_lines
from spark_jobs.records import Record, Refused, field_record, new_columns, require_columns
from spark_jobs.specs import SourceSpec

QUOTE = b'"'
UNDECODED = "\udcff"  # a lone surrogate: its row is a reject


class Fields(NamedTuple):
    """One row. place: the file and the byte at which it begins; values: as many as the header has names."""

    place: str
    values: list[str]


def csv_rows(origin: str, file: Path, first: int, stop: int, source: SourceSpec, max_bytes: int) -> Iterator[Record]:
    """Raises: Refused if a column is gone or there is no header."""
    header, rows = csv_table(origin, file, first, stop, source, max_bytes)
    require_columns(header, source.text_column, source.columns)
    if first == 0 and source.columns:
        yield from new_columns(origin, header, (source.text_column, *source.columns))
    column = header.index(source.text_column)
    for row in rows:
        yield row if isinstance(row, Record) else field_record(row.place, row.values[column], "the column")


def csv_table(
    origin: str, file: Path, first: int, stop: int, source: SourceSpec, max_bytes: int
) -> tuple[list[str], Iterator[Fields | Record]]:
    """(names of the header, rows that begin in [first, stop)). Raises: Refused if there is no header."""
    encoding = encoding_of_lines(file, source.encoding)
    limit = _limit(max_bytes)
    csv.field_size_limit(limit)
    header, after_header = _header(file, encoding, source.delimiter)
    begin = max(first, after_header)
    if begin >= stop:  # a piece that is all header
        return header, iter(())
    return header, _rows(origin, _Feed(file, begin, stop, encoding, limit), source.delimiter, len(header), limit)


def _rows(origin: str, feed: _Feed, delimiter: str, width: int, limit: int) -> Iterator[Fields | Record]:
    rows = csv.reader(feed, delimiter=delimiter)
    while True:
        feed.begin = None
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as err:
            yield Record(f"{origin}@{feed.begin}", None, "bad_csv", detail=str(err)[:200])
            continue
        place = f"{origin}@{feed.begin}"
        if feed.lost:
            yield Record(place, None, "too_long", threshold=float(limit), detail="a line without end")
            feed.lost = False
        elif len(row) == width:
            yield Fields(place, row)
        elif row:
            yield Record(place, None, "bad_csv", float(len(row)), float(width), "another number of fields")


def row_starts(file: Path, source: SourceSpec, max_bytes: int) -> Iterator[int]:
    """The byte at which each row of an uncompressed file begins, blank and bad ones too.

    A line without a quote is a row and is not parsed: the rest is left to the csv module, which knows what is quoted.
    Raises: Refused; OSError.
    """
    encoding, limit = encoding_of_lines(file, source.encoding), _limit(max_bytes)
    csv.field_size_limit(limit)
    _, after_header = _header(file, encoding, source.delimiter)
    quote = QUOTE if _quote_is_one_byte(encoding) else b""  # every line holds b""
    feed = _Feed(file, after_header, 1 << 62, encoding, limit)
    rows = csv.reader(feed, delimiter=source.delimiter)
    for offset, line in feed.raw_lines():
        yield offset
        if line is None or quote in line:
            feed.push(offset, line)
            with suppress(csv.Error):
                next(rows, None)


def _limit(max_bytes: int) -> int:
    return 4 * max_bytes + BLOCK_BYTES


def _quote_is_one_byte(encoding: str) -> bool:
    """Whether byte 22 is a quote and nothing else is: so in UTF-8 and in every code page that extends ASCII."""
    if encoding.startswith("utf-8"):
        return True
    try:
        texts = [bytes([value]).decode(encoding, "surrogateescape") for value in range(256)]
    except UnicodeError:  # a byte that begins something: UTF-7, ISO-2022
        return False
    return all(len(text) == 1 and (text == '"') == (value == QUOTE[0]) for value, text in enumerate(texts))


def _decoded(line: bytes, encoding: str) -> str:
    try:
        return line.decode(encoding, "surrogateescape")
    except UnicodeDecodeError:  # ISO-2022 that ends inside a character: the handler escapes no byte below 80
        return UNDECODED


class _Feed:
    """Decoded lines for the csv module. `begin`: byte offset of the first line taken since it was set to None.

    A byte that the encoding lacks becomes a lone surrogate, which makes a reject of its row alone.
    """

    def __init__(self, file: Path, first: int, stop: int, encoding: str, limit: int) -> None:
        self.begin: int | None = None
        self.lost = False
        self._encoding = encoding
        self._pushed: list[tuple[int, bytes | None]] = []
        if file.suffix in COMPRESSED:
            self._lines = lines(decompressed(file), 0, stop, limit)
            next(self._lines)  # the header
        else:
            self._lines = lines(decompressed(file, first), first, stop, limit)

    def raw_lines(self) -> Iterator[tuple[int, bytes | None]]:
        return self._lines

    def push(self, offset: int, line: bytes | None) -> None:
        """Give this line out next."""
        self._pushed.append((offset, line))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        offset, line = self._pushed.pop() if self._pushed else next(self._lines)
        if self.begin is None:
            self.begin = offset
        if line is None:
            self.lost = True
            return "\n"
        return _decoded(line, self._encoding) + "\n"


def _header(file: Path, encoding: str, delimiter: str) -> tuple[list[str], int]:
    """(names, byte at which the rows begin). Raises: Refused."""
    start = head(file, BLOCK_BYTES)
    line, end, _ = start.partition(b"\n")
    text = line.removeprefix(codecs.BOM_UTF8).decode(encoding, "replace")
    try:
        names = next(csv.reader([text], delimiter=delimiter), [])
    except csv.Error as err:
        raise Refused("bad_csv", f"the header line: {err}") from err
    if not names:
        raise Refused("no_column", "the file has no header line")
    return [name.strip() for name in names], len(line) + len(end)
