"""Whatever a file holds, its reader gives documents and rejects, and raises nothing."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from spark_jobs import ingest
from spark_jobs.readers import Unit, read_unit
from spark_jobs.specs import IngestSpec, SourceSpec

ENCODINGS = st.sampled_from(
    ["", "utf-8", "cp1252", "shift_jis", "gb18030", "utf-16", "utf-7", "idna", "hex", "punycode"]
)
RECORD = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nabcde\r\n\r\n"
RESPONSE = (
    b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: 77\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nabc\r\n\r\n"
)
SNIPPETS = st.sampled_from(
    [
        b"\n",
        b"\r\n",
        b'"',
        b",",
        b"text",
        b"\x00",
        b"\xff",
        b'{"text":"a"}',
        b"\x1b$B",
        b"~{",
        b"\x1f\x8b\x08",
        RECORD,
        RESPONSE,
    ]
)


@given(st.lists(SNIPPETS | st.binary(max_size=8), max_size=12).map(b"".join), ENCODINGS)
@settings(deadline=None, max_examples=120)
@pytest.mark.parametrize("kind", ["jsonl", "lines", "csv", "text", "warc"])
def test_any_bytes_are_read_without_an_exception(
    tmp_path_factory: pytest.TempPathFactory, kind: str, content: bytes, encoding: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name, data in (("a", content), ("a.gz", content), ("b.gz", gzip.compress(content))):
        file = folder / name
        file.write_bytes(b"id,text\n" + data if kind == "csv" and name == "a" else data)
        source = SourceSpec(kind=kind, path=str(file), encoding=encoding, columns=("id",))
        for record in read_unit(source, Unit("", 0, 1 << 62), 1000):
            assert (record.text is None) == (record.reason is not None)
            if record.text is not None:
                record.text.encode()


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_archive_with_one_wrong_byte_loses_at_most_two_records(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    packed = data.draw(st.booleans())
    member = gzip.compress if packed else bytes
    whole = bytearray(b"".join(member(RECORD) for _ in range(8)))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    file = tmp_path_factory.mktemp("flip") / ("a.warc.gz" if packed else "a.warc")
    file.write_bytes(whole)
    records = list(read_unit(SourceSpec(kind="warc", path=str(file)), Unit("", 0, 1 << 62), 1000))
    assert sum(record.text == "abcde" for record in records) >= 6


def test_large_parquet_file_is_cut_between_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SPLIT_BYTES", 300)
    texts = [f"text number {n}" for n in range(100)]
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=7)
    source = SourceSpec(kind="parquet", path=str(tmp_path))
    size = (tmp_path / "a.parquet").stat().st_size
    pieces = list(ingest._pieces(IngestSpec(sources=(source,)), 0, "a.parquet", size))
    assert len(pieces) > 3
    read = [
        record
        for piece in pieces
        for record in read_unit(source, Unit("a.parquet", piece["first"], piece["stop"]), 1000)
    ]
    assert [(record.text, record.origin) for record in read] == [
        (text, f"a.parquet@{row}") for row, text in enumerate(texts)
    ]
    (tmp_path / "b.parquet").write_bytes(b"no table" * 100)
    assert len(list(ingest._pieces(IngestSpec(sources=(source,)), 0, "b.parquet", 800))) == 1


@pytest.mark.parametrize(("kind", "name"), [("jsonl", "a.jsonl"), ("lines", "a.txt"), ("csv", "a.csv")])
def test_large_files_of_lines_are_cut_into_pieces_that_give_every_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.setattr(ingest, "SPLIT_BYTES", 100)
    row = {"jsonl": '{{"text":"{}"}}', "lines": "{}", "csv": "{}"}[kind]
    texts = [f"text number {n}" for n in range(50)]
    (tmp_path / name).write_text(
        "".join(row.format(text) + "\n" for text in (["text"] if kind == "csv" else []) + texts)
    )
    source = SourceSpec(kind=kind, path=str(tmp_path), quoted_newlines=False)
    spec = IngestSpec(sources=(source,))
    pieces = list(ingest._pieces(spec, 0, name, (tmp_path / name).stat().st_size))
    assert len(pieces) > 5
    read = [
        record.text for piece in pieces for record in read_unit(source, Unit(name, piece["first"], piece["stop"]), 1000)
    ]
    assert read == texts
    whole = source.model_copy(update={"quoted_newlines": True})
    if kind == "csv":
        assert len(list(ingest._pieces(IngestSpec(sources=(whole,)), 0, name, 10_000))) == 1
