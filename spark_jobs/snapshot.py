"""What a corpus snapshot says about single documents and sequences: which are forgotten, which are drawn more or less often.

Reads manifests and columns of published tables with pyarrow, a batch at a time; no Spark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from spark_jobs.manifests import Documents, Handle, TokenShards
from spark_jobs.specs import ForgetRule

SEQUENCE_FACTS = pa.schema(
    [("night", pa.string()), ("seq_id", pa.int64()), ("pieces", pa.list_(pa.int32())), ("weight", pa.float64())]
)
DOC_ID = pa.schema([("doc_id", pa.string())])
BATCH_ROWS = 16_384
ORIGIN = re.compile(r"(?P<file>.*?)@(?P<place>\d+)(?: (?P<address>\S.*))?")


def forgotten_ids(nights: Iterable[Documents], rules: Sequence[ForgetRule]) -> pa.Array:
    """Ids (string, ascending, each once) of the documents of `nights` that any rule names."""
    by = {kind: {rule.value for rule in rules if rule.by == kind} for kind in ("doc", "source", "origin")}
    chosen = {rule.value for rule in rules if rule.by == "doc"}
    if by["source"] or by["origin"]:
        for documents in nights:
            for batch in batches_of(documents, "data", ["doc_id", "source", "origin"]):
                chosen.update(
                    row["doc_id"]
                    for row in batch.to_pylist()
                    if row["source"] in by["source"] or any(is_origin(row["origin"], glob) for glob in by["origin"])
                )
    return pa.array(sorted(chosen), pa.string())


def is_origin(origin: str, glob: str) -> bool:
    """Whether a glob names an origin: all of it, its file, or the address of its page. `*` also crosses folders."""
    file, _, address = split_origin(origin)
    return any(fnmatchcase(name, glob) for name in (origin, file, address) if name)


def split_origin(origin: str) -> tuple[str, str, str]:
    """(file, place in it, address of the page) of `a.warc.gz@1024 https://example.com/`; what there is none of is empty."""
    found = ORIGIN.fullmatch(origin)
    return (found["file"], found["place"], found["address"] or "") if found else (origin, "", "")


def sequence_facts(
    night: str, tokens: TokenShards, unique: Documents, forgotten: pa.Array, weights: dict[str, float]
) -> pa.Table:
    """SEQUENCE_FACTS of the sequences of one night that are not drawn once and whole.

    The weight of a sequence is the mean of its documents' weights, by their tokens, over those that are not forgotten.
    """
    ids, of_id = _weights_of(unique, weights)
    parts = [
        _facts_of(night, batch, forgotten, ids, of_id)
        for batch in batches_of(tokens, "data", ["seq_id", "doc_lengths", "doc_ids"])
    ]
    return pa.concat_tables([SEQUENCE_FACTS.empty_table(), *parts])


def _weights_of(unique: Documents, weights: dict[str, float]) -> tuple[pa.Array, NDArray[np.float64]]:
    """(document ids, their weights) of the documents whose weight is not 1."""
    names = pa.array([name for name, weight in weights.items() if weight != 1.0], pa.string())
    if not len(names):
        return pa.array([], pa.string()), np.empty(0)
    values = np.array([weights[name] for name in names.to_pylist()])
    ids, of_id = [pa.array([], pa.string())], [np.empty(0)]
    for batch in batches_of(unique, "data", ["doc_id", "source"]):
        found = pc.index_in(batch.column("source"), names)
        known = pc.is_valid(found)
        ids.append(batch.column("doc_id").filter(known))
        of_id.append(values[found.filter(known).to_numpy(zero_copy_only=False)])
    return pa.concat_arrays(ids), np.concatenate(of_id)


def _facts_of(
    night: str, batch: pa.RecordBatch, forgotten: pa.Array, ids: pa.Array, of_id: NDArray[np.float64]
) -> pa.Table:
    names, lengths = batch.column("doc_ids").flatten(), batch.column("doc_lengths").flatten().to_numpy()
    counts = pc.list_value_length(batch.column("doc_ids")).to_numpy(zero_copy_only=False)
    starts = np.concatenate(([0], np.cumsum(counts)))
    sequence = np.repeat(np.arange(len(counts)), counts)
    gone = pc.is_in(names, forgotten).to_numpy(zero_copy_only=False)
    weight = np.ones(len(lengths))
    if len(ids):
        place = pc.index_in(names, ids)
        known = pc.is_valid(place).to_numpy(zero_copy_only=False)
        weight[known] = of_id[place.drop_null().to_numpy()]
    left = np.bincount(sequence, lengths * ~gone, len(counts))
    total = np.bincount(sequence, lengths * ~gone * weight, len(counts))
    mean = np.divide(total, left, out=np.zeros(len(counts)), where=left > 0)
    num_gone = np.bincount(sequence, gone, len(counts)).astype(np.int64)
    told = (num_gone > 0) | (mean != 1.0)
    pieces = (np.arange(len(lengths)) - starts[sequence])[gone]
    borders = np.concatenate(([0], np.cumsum(num_gone[told])))
    columns = [
        pa.array([night] * int(told.sum()), pa.string()),
        batch.column("seq_id").filter(pa.array(told)),
        pa.ListArray.from_arrays(pa.array(borders, pa.int32()), pa.array(pieces, pa.int32())),
        pa.array(mean[told]),
    ]
    return pa.Table.from_arrays(columns, schema=SEQUENCE_FACTS)


def join_facts(nights: Iterable[pa.Table]) -> pa.Table:
    return pa.concat_tables(nights)


def num_left_out(facts: pa.Table) -> int:
    """Sequences with weight 0."""
    return int(pc.sum(pc.equal(facts.column("weight"), 0.0), min_count=0).as_py())


def write_ids(ids: pa.Array, folder: Path) -> None:
    write_table(pa.table([ids], schema=DOC_ID), folder)


def write_table(table: pa.Table, folder: Path) -> None:
    folder.mkdir(parents=True)
    parquet.write_table(table, folder / "part-00000.parquet", compression="zstd")


def batches_of(handle: Handle, part: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of one table of an output, in the order of its rows, in batches. Nothing for a table without files."""
    for path in handle.paths(part):
        kind = "orc" if path.endswith(".orc") else "parquet"
        for batch in dataset.dataset(path, format=kind).to_batches(
            columns=columns, batch_size=BATCH_ROWS, use_threads=False
        ):
            if batch.num_rows:
                yield batch
