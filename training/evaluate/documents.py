"""Held-out documents of a corpus, and their tokens with the exact bytes these stand for."""

from __future__ import annotations

import gzip
import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import orc
from tokenizers import Tokenizer

from spark_jobs.errors import DataError
from spark_jobs.manifests import Corpus, TokenShards

COLUMNS = ["doc_id", "text", "source", "language"]


@dataclass(frozen=True)
class Document:
    """language: ISO 639 code; "" where it was not asked for, or the tokens were made before it was kept."""

    doc_id: str
    text: str
    source: str
    language: str = ""


@dataclass(frozen=True)
class Scored:
    """A document ready to score: the ids of its (possibly cut) text, and that text."""

    document: Document
    ids: tuple[int, ...]
    text: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


def heldout_documents(corpus: Corpus, limit: int) -> list[Document]:
    """The `limit` held-out documents with the lowest ids over all nights, each id once, ascending, none forgotten.

    Raises: DataError if there is none.
    """
    chosen: list[tuple[_Descending, str, str, str]] = []  # a heap whose top is the highest id kept
    seen: set[str] = set()
    forgotten = _forgotten(corpus)
    for doc_id, text, source, language in _rows(corpus):
        if doc_id in seen or doc_id in forgotten:
            continue
        entry = (_Descending(doc_id), text, source, language)
        if len(chosen) < limit:
            heapq.heappush(chosen, entry)
        elif doc_id < chosen[0][0].doc_id:
            seen.discard(heapq.heapreplace(chosen, entry)[0].doc_id)
        else:
            continue
        seen.add(doc_id)
    if not chosen:
        raise DataError(
            f"corpus {corpus.address} has no held-out documents, nothing to evaluate on: "
            "raise tokenize.heldout_share or add documents"
        )
    documents = [Document(key.doc_id, *row) for key, *row in chosen]
    return sorted(documents, key=lambda d: d.doc_id)


def last_heldout_documents(corpus: Corpus, limit: int) -> list[Document]:
    """Up to `limit` held-out documents with the highest ids, descending, none forgotten; [] if there is none."""
    forgotten = _forgotten(corpus)
    highest = heapq.nlargest(limit, (row for row in _rows(corpus) if row[0] not in forgotten))
    return [Document(*row) for row in dict.fromkeys(highest)]


def texts_of(corpus: Corpus, ids: Collection[str]) -> dict[str, str]:
    """Texts of held-out documents by id, of those that are there; forgotten ones are not."""
    wanted = set(ids) - _forgotten(corpus)
    return {row[0]: row[1] for row in _rows(corpus) if row[0] in wanted}


def every_heldout_text(corpus: Corpus) -> Iterator[str]:
    """The texts of all held-out documents, forgotten ones too, one row group in memory at a time."""
    return (row[1] for row in _rows(corpus))


@dataclass(frozen=True)
class _Descending:
    doc_id: str

    def __lt__(self, other: _Descending) -> bool:
        return self.doc_id > other.doc_id


def _forgotten(corpus: Corpus) -> set[str]:
    return {doc_id for path in corpus.paths("forgotten") for doc_id in pq.read_table(path).column("doc_id").to_pylist()}


def _rows(corpus: Corpus) -> Iterator[tuple[str, str, str, str]]:
    """(doc_id, text, source, language) of every held-out document, one row group in memory at a time."""
    for night in corpus.nights:
        for path in TokenShards.load(corpus.at(night.tokens.address)).paths("heldout"):
            for table in _tables(path):
                columns = [table.column(name).to_pylist() for name in COLUMNS if name in table.schema.names]
                columns += [[""] * table.num_rows] * (len(COLUMNS) - len(columns))
                yield from zip(*columns, strict=True)


def _tables(path: str) -> Iterator[pa.RecordBatch]:
    if path.endswith(".orc"):
        file = orc.ORCFile(path)
        present = [name for name in COLUMNS if name in file.schema.names]
        return (file.read_stripe(i, columns=present) for i in range(file.nstripes))
    parquet = pq.ParquetFile(path)
    present = [name for name in COLUMNS if name in parquet.schema_arrow.names]
    batches: Iterator[pa.RecordBatch] = parquet.iter_batches(1024, columns=present, use_threads=False)
    return batches


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer, with special tokens written in a text read as plain text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def cut_document(document: Document, tokenizer: Tokenizer, max_tokens: int) -> Scored:
    """Ids of the document's first tokens and exactly the text they stand for.

    A cut falls between two characters: where token `max_tokens` ends inside a multi-byte character, the tokens of
    that character are left out, so that bytes are those of what is scored.
    """
    encoding = tokenizer.encode(document.text, add_special_tokens=False)
    if len(encoding.ids) <= max_tokens:
        return Scored(document, tuple(encoding.ids), document.text)
    offsets = encoding.offsets
    keep = max_tokens
    while keep and offsets[keep][0] < offsets[keep - 1][1]:
        keep -= 1
    end = offsets[keep - 1][1] if keep else 0
    return Scored(document, tuple(encoding.ids[:keep]), document.text[:end])


def gzip_bits_per_byte(texts: list[str]) -> float:
    """Bits a byte of gzip -9 over the texts joined with newlines: what a compressor without training reaches."""
    joined = "\n".join(texts).encode()
    return 8 * len(gzip.compress(joined, 9, mtime=0)) / max(1, len(joined))
