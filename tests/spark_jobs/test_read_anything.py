"""Whatever a file holds, its reader gives documents and rejects, and raises nothing."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.readers import Unit, read_unit
from spark_jobs.specs import SourceSpec

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
