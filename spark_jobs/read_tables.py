"""Parquet and ORC: one row, one document; only the text column is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import orc, parquet

from spark_jobs.records import Record, Refused, field_record, new_columns, require_columns
from spark_jobs.specs import SourceSpec

BATCH_ROWS = 1024


def row_group_ranges(file: Path, piece_bytes: int) -> list[tuple[int, int]]:
    """Ranges of row groups of about `piece_bytes` uncompressed; one of all for a file that cannot be opened."""
    try:
        with parquet.ParquetFile(file) as table:
            sizes = [table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups)]
    except (OSError, pa.ArrowException):  # reading it will say why
        return [(0, 1 << 62)]
    ranges, first, held = [], 0, 0
    for number, size in enumerate(sizes, start=1):
        held += size
        if held >= piece_bytes or number == len(sizes):
            ranges.append((first, number))
            first, held = number, 0
    return ranges or [(0, 1 << 62)]


def table_rows(origin: str, file: Path, first: int, stop: int, source: SourceSpec) -> Iterator[Record]:
    """[first, stop): row groups of a Parquet file. Raises: Refused if a column is gone or the text column is no text; pa.ArrowException, OSError."""
    if source.kind == "parquet":
        batches = _parquet_batches(origin, file, first, stop, source)
    else:
        batches = _orc_batches(origin, file, source)
    row = 0
    for column in batches:
        if isinstance(column, Record):
            yield column
            continue
        if isinstance(column, int):
            row = column
            continue
        for place, scalar in enumerate(column):
            try:
                text = scalar.as_py()
            except UnicodeDecodeError as err:
                yield Record(f"{origin}@{row + place}", None, "not_utf8", detail=f"byte {err.start} of the text")
            else:
                yield field_record(f"{origin}@{row + place}", text, "the column")
        row += len(column)


def _parquet_batches(
    origin: str, file: Path, first: int, stop: int, source: SourceSpec
) -> Iterator[pa.Array | Record | int]:
    """The number of the first row, then its column in batches."""
    with parquet.ParquetFile(file) as table:
        yield from _checked_schema(origin, table.schema_arrow, source)
        stop = min(stop, table.num_row_groups)
        yield sum(table.metadata.row_group(group).num_rows for group in range(first))
        groups = list(range(first, stop))
        for batch in table.iter_batches(BATCH_ROWS, groups, columns=[source.text_column], use_threads=False):
            yield batch.column(0)


def _orc_batches(origin: str, file: Path, source: SourceSpec) -> Iterator[pa.Array | Record | int]:
    table = orc.ORCFile(file)
    yield from _checked_schema(origin, table.schema, source)
    for stripe in range(table.nstripes):
        yield table.read_stripe(stripe, columns=[source.text_column]).column(0)


def _checked_schema(origin: str, schema: pa.Schema, source: SourceSpec) -> Iterator[Record]:
    require_columns(schema.names, source.text_column, source.columns)
    kind = schema.field(source.text_column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_kind(plain) for is_kind in TEXT_KINDS):
        raise Refused("retyped_column", f"column {source.text_column!r} is {kind}; wanted string: mend the source")
    if source.columns:
        yield from new_columns(origin, schema.names, (source.text_column, *source.columns))


TEXT_KINDS = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary,
    pa.types.is_null,
)  # fmt: skip
