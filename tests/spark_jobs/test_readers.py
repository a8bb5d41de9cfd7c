import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import orc, parquet

from spark_jobs.byte_streams import line_start, lines
from spark_jobs.readers import Unit, read_unit
from spark_jobs.specs import SourceSpec

EVERYTHING = 1 << 62


def outcome(kind: str, file: Path, max_bytes: int = 1_000_000, **fields: object) -> list[str]:
    """Texts, and reasons in brackets, in the order of the file."""
    source = SourceSpec(kind=kind, path=str(file), **fields)
    return [
        r.text if r.reason is None else f"[{r.reason}]" for r in read_unit(source, Unit("", 0, EVERYTHING), max_bytes)
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text":"a"}', "a"),
        (b'\xef\xbb\xbf{"text":"a"}', "a"),
        (b'{"text":""}', ""),
        (b'{"text":"\xff"}', "[not_utf8]"),
        (b'{"text":"\\ud800"}', "[not_utf8]"),
        (b"null", "[not_an_object]"),
        (b"[1]", "[not_an_object]"),
        (b"7", "[not_an_object]"),
        (b"{", "[bad_json]"),
        (b'{"n":' + b"1" * 5000 + b"}", "[bad_json]"),
        (b"[" * 100_000, "[bad_json]"),
        (b'{"text":null}', "[no_text]"),
        (b'{"other":"a"}', "[no_text]"),
        (b'{"text":["a"]}', "[text_not_a_string]"),
        (b'{"text":"' + b"x" * 2000 + b'"}', "[too_long]"),
    ],
)
def test_jsonl_line_that_is_bad_is_one_reject_and_the_file_goes_on(tmp_path: Path, line: bytes, expected: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text":"before"}\n' + line + b'\r\n\n  \n{"text":"after"}')
    assert outcome("jsonl", file, max_bytes=1000) == ["before", expected, "after"]


def test_jsonl_line_without_end_is_one_reject(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text":"' + b"x" * 5_000_000 + b'"}\n{"text":"after"}\n')
    assert outcome("jsonl", file, max_bytes=1000) == ["[too_long]", "after"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_archive_cut_short_keeps_what_came_before(tmp_path: Path, suffix: str) -> None:
    raw = b"".join(json.dumps({"text": f"{n} {n * 7919 % 1000003}"}).encode() + b"\n" for n in range(20_000))
    packed = gzip.compress(raw) if suffix == ".gz" else zstandard.compress(raw)
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(packed)
    assert len(outcome("jsonl", file)) == 20_000
    file.write_bytes(packed[:-10])
    found = outcome("jsonl", file)
    assert found[-1] == "[truncated]"
    assert found.count("[truncated]") == 1
    assert found[:100] == [f"{n} {n * 7919 % 1000003}" for n in range(100)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_archive_of_several_members_is_read_whole(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix == ".gz" else zstandard.compress
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(pack(b'{"text":"a"}\n{"te') + pack(b'xt":"b"}\n'))
    assert outcome("jsonl", file) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.orc"])
@pytest.mark.parametrize("content", [b"this is no archive", b""])
def test_file_that_is_not_what_it_is_called_is_one_reject(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    (only,) = outcome("jsonl" if "jsonl" in name else name[2:], file)
    assert only in ("[unreadable]", "[truncated]")


def test_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("Grüße\n\nzweite".encode())
    assert outcome("text", file) == ["Grüße\n\nzweite"]
    file.write_bytes(b"caf\xe9")
    assert outcome("text", file) == ["café"]
    file.write_bytes(bytes(range(256)) * 4)
    assert outcome("text", file) == ["[bad_encoding]"]
    file.write_bytes(b"x" * 2000)
    assert outcome("text", file, max_bytes=1000) == ["[too_long]"]


@pytest.mark.parametrize("kind", ["parquet", "orc"])
def test_table_rows_become_documents(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    table = pa.table({"n": [1, 2, 3], "body": ["a", None, "c"]})
    parquet.write_table(table, file) if kind == "parquet" else orc.write_table(table, file)
    assert outcome(kind, file, text_column="body") == ["a", "[no_text]", "c"]
    assert outcome(kind, file, text_column="n") == ["[retyped_column]"]
    assert outcome(kind, file, text_column="text") == ["[no_column]"]
    assert outcome(kind, file, text_column="body", columns=("n", "gone")) == ["[no_column]"]
    assert outcome(kind, file, text_column="body", columns=("n",)) == ["a", "[no_text]", "c"]


@given(
    st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=12),
    st.integers(1, 9),
    st.integers(1, 50),
)
@settings(deadline=None, max_examples=100)
def test_lines_cut_anywhere_are_the_lines_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], block: int, near: int
) -> None:
    raw = b"\n".join(rows)
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    file.write_bytes(raw)
    cut = line_start(file, near)
    found = []
    for first, stop in ((0, cut), (cut, EVERYTHING)):
        if first < stop and first < len(raw):
            blocks = [raw[at : at + block] for at in range(first, len(raw), block)]
            found += list(lines(blocks, first, stop, limit=100))
    expected, offset = [], 0
    for row in rows:
        expected.append((offset, row))
        offset += len(row) + 1
    assert [f for f in found if f[1]] == [e for e in expected if e[1]]
