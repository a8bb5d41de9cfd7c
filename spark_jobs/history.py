"""The documents that stayed on earlier nights, as dedup sees them: look-ups in their index, their texts, tonight's own run.

Format of the index and how it is searched: key_index.py. What this reads follows tonight's documents, not the history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import orc, parquet
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import key_index, orc_footer, tables
from spark_jobs.errors import RequestError
from spark_jobs.job import Job
from spark_jobs.key_index import RECORD, IndexFile, IndexParameters, IndexReader, Record, Run
from spark_jobs.manifests import Corpus, Documents, ForgottenDocuments
from spark_jobs.minhash import NORMALISER
from spark_jobs.schemas import Schema, ddl
from spark_jobs.specs import DedupSpec

PLACED: Schema = {"key64": "bigint", "place": "bigint"}
WRITTEN: Schema = {"range": "int", "num_rows": "bigint"}


def parameters_of(spec: DedupSpec) -> IndexParameters:
    return IndexParameters(ngram=spec.ngram, bands=spec.bands, rows=spec.rows, seed=spec.seed, normaliser=NORMALISER)


class History:
    """Earlier nights, oldest first; picklable, files are opened where they are needed.

    nights: (night, address of its unique documents). runs: the live runs, addresses as folders. forgotten: ids of documents
    that must not be found any more.
    """

    def __init__(
        self, workspace: str, nights: tuple[tuple[str, str], ...], runs: tuple[Run, ...], forgotten: frozenset[str]
    ) -> None:
        self.workspace, self.nights, self.runs, self.forgotten = workspace, nights, runs, forgotten

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return History, (self.workspace, self.nights, self.runs, self.forgotten)

    @classmethod
    def open(cls, job: Job, spec: DedupSpec) -> History:
        """Reads the newest night's index.json only.

        Raises: RequestError if the index was made with other parameters; DataError if it is damaged.
        """
        if "history" not in job.inputs:
            return cls("", (), (), frozenset())
        corpus = job.input("history", Corpus)
        nights = tuple((night.night, night.unique.address) for night in corpus.nights)
        night, address = nights[-1]
        newest = IndexFile.load(Path(corpus.at(address)) / "index")
        for name, made in newest.parameters:
            asked = getattr(parameters_of(spec), name)
            if made != asked:
                raise RequestError(
                    f"dedup.{name}={asked}: the index of night {night} was made with {made} and cannot be compared; "
                    f"set dedup.{name}={made}, or begin a new pipeline"
                )
        runs = tuple(
            run if run.folder else run.model_copy(update={"folder": f"{address}/index/run"}) for run in newest.runs
        )
        asked_for = job.input("forgotten", ForgottenDocuments) if "forgotten" in job.inputs else None
        paths = asked_for.paths() if asked_for else corpus.paths("forgotten")
        ids = parquet.read_table(paths[0], columns=["doc_id"]).column(0).to_pylist() if paths else []
        return cls(str(corpus.workspace), nights, runs, frozenset(ids))

    @property
    def is_empty(self) -> bool:
        return not self.nights

    @cached_property
    def index(self) -> IndexReader:
        return IndexReader(self.workspace, tuple(address for _, address in self.nights), self.runs)

    def record(self, place: int) -> Record | None:
        """The document at a place, None if it was forgotten."""
        record = self.index.record(place)
        return None if record.doc_id in self.forgotten else record

    def night_of(self, record: Record) -> str:
        return self.nights[record.number][0]

    def texts(self, records: Sequence[Record]) -> list[str]:
        """Text of each; of a file only the row groups or stripes that hold one are read."""
        wanted: dict[tuple[int, int], list[int]] = defaultdict(list)
        for nth, record in enumerate(records):
            wanted[record.number, record.part].append(nth)
        texts = [""] * len(records)
        for (number, part), places in sorted(wanted.items()):
            path = self._documents(number).paths("data")[part]
            found = texts_at(Path(path), [records[nth].row for nth in places])
            for nth, text in zip(places, found, strict=True):
                texts[nth] = text
        return texts

    def _documents(self, number: int) -> Documents:
        return Documents.load(Path(self.workspace) / self.nights[number][1])


def texts_at(path: Path, rows: list[int]) -> list[str]:
    """Column `text` of these rows, in the order asked for."""
    file: Any
    if path.suffix == ".orc":
        file = orc.ORCFile(path)
        sizes = [stripe.num_rows for stripe in orc_footer.stripes(path)]
        read = file.read_stripe
    else:
        file = parquet.ParquetFile(path)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        read = file.read_row_group
    borders = np.concatenate(([0], np.cumsum(sizes)))
    groups = np.searchsorted(borders, rows, side="right") - 1
    columns = {int(group): read(int(group), columns=["text"]).column("text") for group in np.unique(groups)}
    return [columns[int(group)][row - int(borders[group])].as_py() for row, group in zip(rows, groups, strict=True)]


def write_index(
    job: Job, kept: DataFrame, history: History, spec: DedupSpec, num_keys: int, part_rows: list[int]
) -> Run:
    """Write index/ of tonight: its documents, its run (merged with the runs before it where that is due), index.json.

    kept: doc_id, key string, keys array<bigint> of each document that stays. num_keys: keys in all. part_rows: documents in
    each range of doc_id, as many ranges as data/ was cut into.
    """
    number, folder = len(history.nights), job.out / "index"
    merged = key_index.runs_to_merge(history.runs, num_keys)
    older = history.runs[len(history.runs) - merged :]
    num_rows = num_keys + sum(run.num_rows for run in older)
    ranges = key_index.num_ranges(num_rows)
    folder.mkdir(parents=True, exist_ok=True)
    placed = _place_keys(kept, folder, number, part_rows)
    writer = _range_writer(str(folder / "run"), history, older, ranges)
    by_range = placed.repartitionById(ranges, _range_of_key(ranges))
    written = sum(row["num_rows"] for row in by_range.mapInArrow(writer, ddl(WRITTEN)).collect())
    for leftover in folder.rglob(".*"):  # of a task that was killed while it wrote
        leftover.unlink()
    assert written == num_rows, f"index of {written} rows, {num_rows} wanted"
    own = Run(folder="", first=older[0].first if older else number, last=number, num_rows=num_rows, num_ranges=ranges)
    IndexFile(
        parameters=parameters_of(spec), night=job.night, number=number,
        document_rows=tuple(rows for rows in part_rows if rows), runs=(*history.runs[: len(history.runs) - merged], own),
    ).save(folder)  # fmt: skip
    return own


def _range_of_key(ranges: int) -> F.Column:
    high = F.shiftrightunsigned(F.col("key64"), 32)
    return ((high * F.lit(ranges)) / F.lit(1 << 32)).cast("int")


def _place_keys(kept: DataFrame, folder: Path, number: int, part_rows: list[int]) -> DataFrame:
    """Number the documents in doc_id order, write their records beside, and give each of their keys: PLACED."""
    firsts = [sum(part_rows[:part]) for part in range(len(part_rows))]
    file_numbers = [sum(rows > 0 for rows in part_rows[:part]) for part in range(len(part_rows))]

    def place_part(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        part = TaskContext.get().partitionId()
        records = [np.zeros(0, RECORD)]
        done = firsts[part]
        for batch in batches:
            rows = np.zeros(len(batch), RECORD)
            for name in ("doc_id", "key"):
                rows[name] = np.frombuffer(bytes.fromhex("".join(batch.column(name).to_pylist())), "V16")
            records.append(rows)
            counts = batch.column("keys").value_lengths().to_numpy()
            places = np.repeat(np.arange(done, done + len(batch)) | (number << key_index.ORDINAL_BITS), counts)
            done += len(batch)
            keys = batch.column("keys").flatten()
            yield pa.RecordBatch.from_arrays([keys, pa.array(places, pa.int64())], names=list(PLACED))
        if part_rows[part]:
            path = folder / f"documents-{file_numbers[part]:05d}.bin"
            key_index.write_bytes(path, np.concatenate(records).tobytes())

    parts = len(part_rows)
    ordered = kept.repartitionById(parts, tables.range_of_hex("doc_id", parts)).sortWithinPartitions("doc_id")
    return ordered.select("doc_id", "key", "keys").mapInArrow(place_part, ddl(PLACED))


def _range_writer(folder: str, history: History, older: tuple[Run, ...], ranges: int):  # type: ignore[no-untyped-def]
    """Function of one partition = one key range: merge it with the same range of older runs and write it."""

    def write_range(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        number = TaskContext.get().partitionId()
        keys, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for run in older:
            rows = key_index.RunReader(Path(history.workspace), run).rows_between(
                *key_index.range_bounds(number, ranges)
            )
            keys.append(rows[0])
            places.append(rows[1])
        for batch in batches:
            keys.append(_unsigned(batch.column("key64")))
            places.append(_unsigned(batch.column("place")))
        all_keys, all_places = np.concatenate(keys), np.concatenate(places)
        order = np.lexsort((all_places, all_keys))
        key_index.write_range(Path(folder), number, all_keys[order], all_places[order])
        yield pa.RecordBatch.from_pydict({"range": pa.array([number], pa.int32()), "num_rows": [len(order)]})

    return write_range


def _unsigned(column: pa.Array) -> NDArray[np.uint64]:
    numbers: NDArray[np.int64] = column.to_numpy(zero_copy_only=False)
    return numbers.view(np.uint64)
