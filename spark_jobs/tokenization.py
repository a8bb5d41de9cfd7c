"""Tokenize documents and pack them into training sequences; keep some documents out for evaluation.

A document becomes bos + tokens + eos (encoder.py). Ids are stored as 32-bit integers: Parquet and ORC know no narrower ones
inside, and their dictionary and bit-packing bring a small vocabulary to less than two bytes a token. Packing (packing.py) works inside blocks of about BLOCK_TOKENS, chosen by document
id, so that a block fits one core's memory and its content follows from the documents alone. The order of sequences over
the whole output is that of a seeded hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import encoder, packing, tables
from spark_jobs.errors import DataError
from spark_jobs.int_columns import from_binary, to_binary, to_lists
from spark_jobs.job import Job
from spark_jobs.manifests import Documents, TokenizerFiles
from spark_jobs.requests import Outcome
from spark_jobs.schemas import DOCUMENTS, HELDOUT, SEQUENCES, Schema, ddl
from spark_jobs.specs import TokenizeSpec
from spark_jobs.tokenizer import sample_texts

Ends = tuple[packing.Ranks, NDArray[np.bool_]]

BLOCK_TOKENS = 4_000_000
TOKEN_BYTES = 4
HELDOUT_SALT = (
    "heldout"  # not the bits that order documents, or the tokenizer's sample would meet the held-out ones first
)
ENCODE_BYTES = 1 << 20  # of text at a time: the library's encodings take some 100 bytes a token

STOPS = (".", "!", "?", "…", "。", "！", "？", "।", "؟")
CLOSING = "\"')]}»”’"

# Between Spark and Python these pass as binary (int_columns.py) and as one string; `_write_sequences` makes SEQUENCES of them.
ENCODED: Schema = {"doc_id": "string", "tokens": "binary"}
PACKED: Schema = {"tokens": "binary", "doc_lengths": "binary", "doc_ids": "string", "order_key": "bigint"}
ID_SEPARATOR = " "


def tokenize(job: Job, spec: TokenizeSpec) -> Outcome:
    """Raises: DataError if no document is left for training."""
    documents, files = job.input("documents", Documents), job.input("tokenizer", TokenizerFiles)
    split = split_heldout(tables.read_data(job.spark, documents, DOCUMENTS), spec.heldout_share)
    heldout, training = split.where("is_heldout"), split.where("not is_heldout")
    is_fast = encoder.agrees(f"{files.folder()}/tokenizer.json", sample_texts(documents, encoder.SAMPLE_BYTES))
    encoded = tables.stage(encode_documents(training, files, is_fast), job.scratch("encoded"))
    totals = encoded.agg(F.count("*").alias("documents"), F.sum(F.octet_length("tokens")).alias("size")).first()
    num_documents, num_tokens = int(totals["documents"]), int(totals["size"] or 0) // TOKEN_BYTES
    if num_documents == 0:
        raise DataError(
            f"{documents.address}: {documents.num_rows} documents and none left to train on (tokenize.heldout_share="
            f"{spec.heldout_share}); add documents or lower the share"
        )
    ends = token_ends(files) if spec.cut == "sentences" else None
    packed = tables.stage(pack_documents(encoded, num_tokens, spec, ends), job.scratch("packed"))
    num_sequences = _write_sequences(job, packed, num_tokens * TOKEN_BYTES, spec)
    num_heldout = documents.num_rows - num_documents
    parts = tables.num_files(heldout.agg(F.sum(F.octet_length("text"))).first()[0] or 0)
    place = tables.range_of_hex("doc_id", parts)
    tables.write_table(heldout.select(*HELDOUT), job.out / "heldout", spec.format, place, parts, ("doc_id",))
    return Outcome(
        num_rows=num_sequences,
        format=spec.format,
        columns=tables.columns_of(SEQUENCES),
        counts={"documents": documents.num_rows, "trained": num_documents, "heldout": num_heldout},
        fields={
            "seq_len": spec.seq_len,
            "vocab_size": files.vocab_size,
            "num_tokens": num_tokens,
            "num_heldout": num_heldout,
            "tokenizer": files.address,
        },
    )


def split_heldout(documents: DataFrame, share: float) -> DataFrame:
    """Add `is_heldout`: true for about `share` of the documents, the same ones whatever else is there."""
    place = F.conv(F.substring(F.md5(F.concat(F.lit(HELDOUT_SALT), F.col("doc_id"))), 1, 8), 16, 10).cast("long")
    return documents.withColumn("is_heldout", place < F.lit(int(share * 2**32)))


def encode_documents(documents: DataFrame, files: TokenizerFiles, is_fast: bool = False) -> DataFrame:
    """DOCUMENTS -> ENCODED: bos + tokens of the text + eos. is_fast: see `encoder.agrees`."""
    path, bos, eos = f"{files.folder()}/tokenizer.json", files.bos_id, files.eos_id

    def encode_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        encode = encoder.encoder(path, is_fast).encode
        for batch in batches:
            for first, stop in _slices(batch.column("text")):
                rows = encode(batch.column("text")[first:stop].to_pylist())
                tokens = pa.array([[bos, *ids, eos] for ids in rows], pa.list_(pa.int32()))
                columns = [batch.column("doc_id")[first:stop], to_binary(tokens)]
                yield pa.RecordBatch.from_arrays(columns, names=list(ENCODED))

    return documents.select("doc_id", "text").mapInArrow(encode_batches, ddl(ENCODED))


def token_ends(files: TokenizerFiles) -> Ends:
    """By token id: how good it is to end a piece of a long document behind it (3 a blank line, 2 a line, 1 a sentence,
    0 none of them), uint8; and whether the token begins with white space, without which a full stop ends nothing.
    """
    tokenizer = encoder.load_tokenizer(f"{files.folder()}/tokenizer.json")
    inside = getattr(tokenizer.model, "continuing_subword_prefix", None) or ""
    ends, opens = np.zeros(files.vocab_size, np.uint8), np.zeros(files.vocab_size, np.bool_)
    for name, number in tokenizer.get_vocab().items():
        text = encoder.text_of(name.removeprefix(inside) if inside else name)
        ends[number], opens[number] = end_rank(text), text[:1].isspace()
    opens[files.eos_id] = True
    return ends, opens


def end_rank(text: str) -> int:
    """Of a token's text, see `token_ends`."""
    if text.rstrip(" \t\r").endswith("\n"):
        return 3 if text.count("\n") > 1 else 2
    return int(text.rstrip().rstrip(CLOSING).endswith(STOPS))


def _piece_ends(tokens: NDArray[np.int32], table: Ends) -> packing.Ranks:
    """uint8 a token, for `packing.cut_at_ends`. Two line ends in a row are a blank line."""
    ends, opens = table
    ranks = ends[tokens]
    following = np.concatenate((tokens[1:], tokens[-1:]))
    ranks[(ranks == 1) & ~opens[following]] = 0
    lines = ranks >= 2
    ranks[1:][lines[1:] & lines[:-1]] = 3
    ranks[:-1][lines[1:] & lines[:-1]] = 0  # the cut belongs behind all of them
    return ranks


def _slices(texts: pa.Array) -> Iterator[tuple[int, int]]:
    """Runs of rows of about ENCODE_BYTES."""
    ends = np.cumsum(pa.compute.binary_length(texts).to_numpy(zero_copy_only=False))
    borders = np.flatnonzero(np.diff(ends // ENCODE_BYTES, prepend=0)) + 1
    cuts = sorted({0, *(int(border) for border in borders), len(texts)})
    yield from pairwise(cuts)


def pack_documents(encoded: DataFrame, num_tokens: int, spec: TokenizeSpec, ends: Ends | None = None) -> DataFrame:
    """ENCODED -> PACKED, with `order_key` bigint: a seeded hash of the sequence's place in its block. ends: `token_ends`."""
    blocks = -(-num_tokens // BLOCK_TOKENS)
    seq_len, seed = spec.seq_len, spec.seed

    def pack_block(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        block = pa.Table.from_batches(batches, schema=_ENCODED_ARROW)
        if block.num_rows:
            yield from pack_table(block, seq_len, seed, ends)

    ordered = encoded.repartitionById(blocks, tables.range_of_hex("doc_id", blocks)).sortWithinPartitions("doc_id")
    return ordered.mapInArrow(pack_block, ddl(PACKED))


_ENCODED_ARROW = pa.schema([("doc_id", pa.string()), ("tokens", pa.binary())])


def pack_table(block: pa.Table, seq_len: int, seed: int, ends: Ends | None = None) -> Iterator[pa.RecordBatch]:
    """One block, sorted by doc_id, as packed sequences. Order of documents in a sequence: that of the pieces."""
    tokens, starts = from_binary(block.column("tokens").combine_chunks())
    if ends is None:
        documents, firsts, lengths = packing.cut(np.diff(starts), seq_len)
    else:
        documents, firsts, lengths = packing.cut_at_ends(np.diff(starts), _piece_ends(tokens, ends), seq_len)
    sequence = packing.best_fit(lengths, seq_len)
    order = np.argsort(sequence, kind="stable")
    borders = np.searchsorted(sequence[order], np.arange(sequence.max() + 2))
    pieces = [
        tokens[starts[d] + f : starts[d] + f + n]
        for d, f, n in zip(documents[order], firsts[order], lengths[order], strict=True)
    ]
    ids = block.column("doc_id").to_pylist()
    names = [ids[document] for document in documents[order]]
    sizes = np.concatenate(([0], np.cumsum(lengths[order])))
    first_name = ids[0].encode()
    keys = [xxhash.xxh3_64_intdigest(b"%s %d" % (first_name, number), seed) for number in range(len(borders) - 1)]
    ints = (pa.array(np.concatenate(pieces), pa.int32()), pa.array(lengths[order], pa.int32()))
    token_lists = pa.ListArray.from_arrays(pa.array(sizes[borders], pa.int32()), ints[0])
    length_lists, name_lists = (
        pa.ListArray.from_arrays(pa.array(borders, pa.int32()), values)
        for values in (ints[1], pa.array(names, pa.string()))
    )
    columns = [
        to_binary(token_lists), to_binary(length_lists), pa.compute.binary_join(name_lists, ID_SEPARATOR),
        pa.array(np.array(keys, np.uint64).view(np.int64)),
    ]  # fmt: skip
    yield pa.RecordBatch.from_arrays(columns, names=list(PACKED))


def unpacked(packed: pa.RecordBatch) -> dict[str, pa.Array]:
    """PACKED -> the columns of SEQUENCES but `seq_id`."""
    return {
        "tokens": to_lists(packed.column("tokens")),
        "doc_lengths": to_lists(packed.column("doc_lengths")),
        "doc_ids": pa.compute.split_pattern(packed.column("doc_ids"), ID_SEPARATOR),
    }


def _write_sequences(job: Job, packed: DataFrame, size_bytes: int, spec: TokenizeSpec) -> int:
    """Write data/ in the order of `order_key` and number the sequences; returns how many there are."""
    parts = tables.num_files(size_bytes)
    placed = packed.withColumn("part", tables.range_of_long("order_key", parts))
    counts = {row["part"]: row["count"] for row in placed.groupBy("part").count().collect()}
    before = np.concatenate(([0], np.cumsum([counts.get(part, 0) for part in range(parts)])))
    offsets = [int(number) for number in before]

    def number_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        done = 0
        for batch in batches:
            if batch.num_rows:
                first = offsets[batch.column("part")[0].as_py()] + done
                numbers = pa.array(np.arange(first, first + batch.num_rows), pa.int64())
                done += batch.num_rows
                columns = {"seq_id": numbers} | unpacked(batch)
                yield pa.RecordBatch.from_arrays([columns[name] for name in SEQUENCES], names=list(SEQUENCES))

    ordered = placed.repartitionById(parts, F.col("part")).sortWithinPartitions("order_key", "doc_ids")
    tables.save(ordered.mapInArrow(number_rows, ddl(SEQUENCES)), job.out / "data", spec.format)
    return offsets[-1]
