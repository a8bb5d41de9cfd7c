"""Made rows put in order of id on disk, and merged with the rows that were there, a row group in memory at a time."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.augment.allowed import Row

RUN_ROWS = 16_384  # made rows sorted in memory at once
MERGE_FILES = 64  # run files open at once
GROUP_ROWS = 4096  # rows of a row group that is written
READ_ROWS = 256  # rows of each run that are in memory while runs are merged


class SortedRuns:
    """Rows in any order in, rows in order of (id, made_from, made_by) out, with files of a scratch folder between."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._rows: list[Row] = []
        self._files: list[Path] = []
        self._num_files = 0

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= RUN_ROWS:
            self._spill()

    def in_order(self) -> Iterator[Row]:
        self._spill()
        while len(self._files) > MERGE_FILES:
            groups = [self._files[i : i + MERGE_FILES] for i in range(0, len(self._files), MERGE_FILES)]
            self._files = [self._write(_merged(group)) for group in groups]
        return _merged(self._files)

    def _spill(self) -> None:
        if self._rows:
            self._files.append(self._write(sorted(self._rows, key=_order)))
            self._rows = []

    def _write(self, rows: Iterable[Row]) -> Path:
        path = self._folder / f"run-{self._num_files:06d}.parquet"
        self._num_files += 1
        with pq.ParquetWriter(path, self._schema) as writer:
            for batch in _batches(rows):
                writer.write_table(pa.Table.from_pylist(batch, self._schema))
        return path


def write_merged(originals: Sequence[str], made: Iterator[Row], schema: pa.Schema, path: Path) -> Counter[str]:
    """Write both in order of id. Originals pass as they are; of made rows with one id the first is kept.

    Returns rows kept by method under `made.<method>`, rows left out under `unused.<method>.duplicate`.
    """
    counts: Counter[str] = Counter()
    unique = _unique(made, counts)
    following = next(unique, None)
    with pq.ParquetWriter(path, schema) as writer:
        for table in _tables(originals, GROUP_ROWS):
            last, batch = table.column("id")[-1].as_py(), []
            while following is not None and following["id"] <= last:
                batch.append(following)
                following = next(unique, None)
            both = pa.concat_tables([table, pa.Table.from_pylist(batch, schema)]).sort_by("id")
            writer.write_table(both, row_group_size=GROUP_ROWS)
        rest = unique if following is None else _with_first(following, unique)
        for batch in _batches(rest):
            writer.write_table(pa.Table.from_pylist(batch, schema))
    return counts


def read_rows(paths: Sequence[str], num_at_once: int = 1024) -> Iterator[Row]:
    """Rows by column, a few in memory at a time."""
    for table in _tables(paths, num_at_once):
        yield from table.to_pylist()


def _tables(paths: Sequence[str], num_at_once: int) -> Iterator[pa.Table]:
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(num_at_once, use_threads=False):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])


def _unique(made: Iterator[Row], counts: Counter[str]) -> Iterator[Row]:
    before = ""
    for row in made:
        if row["id"] == before:
            counts[f"unused.{row['made_by']}.duplicate"] += 1
        else:
            counts[f"made.{row['made_by']}"] += 1
            before = row["id"]
            yield row


def _merged(files: Sequence[Path]) -> Iterator[Row]:
    return heapq.merge(*(read_rows([str(path)], READ_ROWS) for path in files), key=_order)


def _order(row: Row) -> tuple[str, str, str]:
    return row["id"], row["made_from"], row["made_by"]


def _batches(rows: Iterable[Row]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == GROUP_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _with_first(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest
