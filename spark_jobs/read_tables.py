"""Parquet and ORC: one row, one document; only the text column is read.

A row group or stripe that cannot be read is one reject; the next one is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from spark_jobs import orc_footer
from spark_jobs.orc_file import OrcFile
from spark_jobs.records import Record, Refused, field_record, new_columns, require_columns
from spark_jobs.specs import SourceSpec

BATCH_ROWS = 1024
ALL = (0, 1 << 62)


def table_ranges(kind: str, file: Path, piece_bytes: int) -> list[tuple[int, int]]:
    """Ranges of row groups (of about `piece_bytes` uncompressed) or of stripes (of about `piece_bytes` as stored); one of
    all for a file whose footer cannot be read.
    """
    try:
        if kind == "orc":
            sizes = [stripe.size_bytes for stripe in orc_footer.stripes(file)]
        else:
            with parquet.ParquetFile(file) as table:
                sizes = [table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups)]
    except (OSError, ValueError, pa.ArrowException):  # reading it will say why
        return [ALL]
    ranges, first, held = [], 0, 0
    for number, size in enumerate(sizes, start=1):
        held += size
        if held >= piece_bytes or number == len(sizes):
            ranges.append((first, number))
            first, held = number, 0
    return ranges or [ALL]


def table_rows(origin: str, file: Path, first: int, stop: int, source: SourceSpec) -> Iterator[Record]:
    """The rows of parts [first, stop). Raises: Refused if a column is gone or the text column is no text; pa.ArrowException,
    OSError if the file cannot be opened.
    """
    table = open_table(source.kind, file)
    _check_schema(table.schema, source)
    if first == 0 and source.columns:
        yield from new_columns(origin, table.schema.names, (source.text_column, *source.columns))
    for part in range(first, min(stop, len(table.first_rows))):
        row = table.first_rows[part]
        try:
            for column in table.batches(part, source.text_column):
                yield from _column_records(origin, row, column)
                row += len(column)
        except (pa.ArrowException, OSError) as err:
            yield Record(f"{origin}@{row}", None, "unreadable", detail=f"{type(err).__name__}: {err}"[:300])


def open_table(kind: str, file: Path) -> ParquetTable | OrcFile:
    """Raises: pa.ArrowException, OSError."""
    return ParquetTable(file) if kind == "parquet" else OrcFile(file)


def _column_records(origin: str, row: int, column: pa.Array) -> Iterator[Record]:
    for place, scalar in enumerate(column):
        try:
            text = scalar.as_py()
        except UnicodeDecodeError as err:
            yield Record(f"{origin}@{row + place}", None, "not_utf8", detail=f"byte {err.start} of the text")
        else:
            yield field_record(f"{origin}@{row + place}", text, "the column")


class ParquetTable:
    """The same as OrcFile for Parquet and its row groups."""

    def __init__(self, file: Path) -> None:
        self._file = parquet.ParquetFile(file)
        self.schema: pa.Schema = self._file.schema_arrow
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self.first_rows = [0, *accumulate(sizes)][: len(sizes)]

    def batches(self, part: int, name: str) -> Iterator[pa.Array]:
        for batch in self._file.iter_batches(BATCH_ROWS, [part], columns=[name], use_threads=False):
            yield batch.column(0)


def _check_schema(schema: pa.Schema, source: SourceSpec) -> None:
    require_columns(schema.names, source.text_column, source.columns)
    kind = schema.field(source.text_column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_kind(plain) for is_kind in TEXT_KINDS):
        raise Refused("retyped_column", f"column {source.text_column!r} is {kind}; wanted string: mend the source")


TEXT_KINDS = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary,
    pa.types.is_null,
)  # fmt: skip
