"""Whatever a large file holds, its pieces give the records of the whole file: the same, once each, in the same order."""

import gzip
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import orc, parquet

from spark_jobs import orc_file, orc_footer
from spark_jobs.readers import Unit, pieces, read_unit
from spark_jobs.records import Record
from spark_jobs.specs import SourceSpec

MAX_BYTES = 1000
WARC = Path(__file__).parents[3] / "shared/data/web/warc"
Tmp = pytest.TempPathFactory


def read(source: SourceSpec, units: list[Unit]) -> list[Record]:
    return [record for unit in units for record in read_unit(source, unit, MAX_BYTES)]


def in_pieces(source: SourceSpec, piece_bytes: int) -> tuple[int, list[Record]]:
    """(number of pieces, their records one after the other)."""
    units = pieces(source, "", Path(source.path).stat().st_size, piece_bytes, MAX_BYTES)
    return len(units), read(source, units)


def assert_same(source: SourceSpec, piece_bytes: int) -> int:
    number, found = in_pieces(source, piece_bytes)
    assert found == read(source, [Unit("")])
    return number


def warc_record(text: bytes, kind: bytes = b"conversion", length: int | None = None) -> bytes:
    size = len(text) if length is None else length
    head = b"WARC/1.0\r\nWARC-Type: %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % (kind, size)
    return head + text + b"\r\n\r\n"


# --- lines, JSON Lines, CSV


@pytest.mark.parametrize(("kind", "name"), [("jsonl", "a.jsonl"), ("lines", "a.txt"), ("csv", "a.csv")])
@pytest.mark.parametrize("quoted", [False, True])
def test_pieces_of_a_file_of_lines_give_every_record_once(tmp_path: Path, kind: str, name: str, quoted: bool) -> None:
    row = {"jsonl": '{{"text":"{}"}}\n', "lines": "{}\n", "csv": "{}\n"}[kind]
    texts = [f"text number {n}" for n in range(50)]
    file = tmp_path / name
    file.write_text("".join(row.format(text) for text in (["text"] if kind == "csv" else []) + texts))
    source = SourceSpec(kind=kind, path=str(file), quoted_newlines=quoted)
    number, found = in_pieces(source, 100)
    assert number > 5
    assert [record.text for record in found] == texts
    assert found == read(source, [Unit("")])


def test_pieces_of_csv_begin_where_rows_do_and_never_inside_quotes(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows = [f'{n},"line of {n}\nand, ""another""\r\n"\n' for n in range(40)]
    file.write_bytes(b"\xef\xbb\xbfid,text\n" + "".join(rows).encode())
    source = SourceSpec(kind="csv", path=str(file))
    assert assert_same(source, 1) == 1 + 40  # header and rows
    assert [record.text for record in in_pieces(source, 50)[1]] == [
        f'line of {n}\nand, "another"\r\n' for n in range(40)
    ]


SNIPPETS = [
    b'"',
    b'""',
    b",",
    b"\n",
    b"\r\n",
    b"\r",
    b"a",
    b"x" * 700,
    b"y" * 6000,
    b"\x00",
    b"\xff",
    b"1,b\n",
    b'2,"c\nd"\n',
]


@given(
    st.lists(st.sampled_from(SNIPPETS) | st.binary(max_size=4), max_size=25).map(b"".join),
    st.integers(1, 40),
    st.data(),
)
@settings(deadline=None, max_examples=200)
def test_pieces_of_any_csv_give_the_records_of_the_whole(
    tmp_path_factory: Tmp, content: bytes, piece_bytes: int, data: st.DataObject
) -> None:
    encoding = data.draw(
        st.sampled_from(["", "utf-8", "cp1252", "shift_jis", "gb18030", "utf-7", "iso2022_jp", "cp037"])
    )
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    file.write_bytes(b"id,text\n" + content)
    assert_same(SourceSpec(kind="csv", path=str(file), encoding=encoding), piece_bytes)


# --- web archives


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_pieces_of_an_archive_begin_at_records(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "a.warc"
    texts = [b"text number %d" % n for n in range(30)]
    file.write_bytes(b"".join(pack(warc_record(text)) for text in texts))
    source = SourceSpec(kind="warc", path=str(file))
    assert assert_same(source, 1) == 30
    assert 3 < assert_same(source, 500) < 15
    assert [record.text for record in in_pieces(source, 500)[1]] == [text.decode() for text in texts]


def test_pieces_go_on_behind_damage(tmp_path: Path) -> None:
    file = tmp_path / "a.warc"
    broken = [
        warc_record(b"bbb", length=90_000),
        warc_record(b"b" * 20_000),
        b"garbage\r\n",
        warc_record(b"bbb", length=1),
    ]
    file.write_bytes(b"".join(warc_record(b"good") + one for one in broken) + warc_record(b"good") * 20)
    source = SourceSpec(kind="warc", path=str(file))
    assert assert_same(source, 1) > 20
    texts = [record.text for record in read(source, [Unit("")])]
    assert (texts.count("good"), len(texts)) == (24, 28)


@pytest.mark.parametrize("name", ["a.warc.zst", "a.warc.gz"])
def test_archive_that_is_one_stream_is_one_piece(tmp_path: Path, name: str) -> None:
    whole = warc_record(b"text") * 30
    file = tmp_path / name
    file.write_bytes(gzip.compress(whole) if name.endswith("gz") else pa.Codec("zstd").compress(whole, asbytes=True))
    assert assert_same(SourceSpec(kind="warc", path=str(file)), 1) == 1


PARTS = [
    warc_record(b"text"),
    warc_record(b"more text", kind=b"warcinfo"),
    warc_record(b"wrong", length=3),
    warc_record(b"wrong", length=60),
    warc_record(b"wrong", length=10**9),
    warc_record(b"x" * 11_000),
    warc_record(b"a record inside\nWARC/1.0\r\nContent-Length: 4\r\n\r\nabcd\r\n\r\n"),
    b"\r\n",
    b"garbage\n",
    b"WARC/1.0\r\nno length\r\n\r\n",
    b"",
]
LINE = b"http://x/ 127.0.0.1 20140216050221 text/plain %d\n"
PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\ntext"
OLD_PARTS = [
    *(LINE % size + PAGE + b"\n" for size in (len(PAGE), len(PAGE), len(PAGE), 3, 400, 10**9)),
    LINE % 11_000 + b"x" * 11_000 + b"\n",
    LINE % len(LINE) + LINE + b"\n",
    b"\n",
    b"garbage\n",
    b"",
]


@pytest.mark.parametrize(("name", "parts"), [("a.warc", PARTS), ("a.arc", OLD_PARTS)])
@given(data=st.data())
@settings(deadline=None, max_examples=250)
def test_pieces_of_any_archive_give_the_records_of_the_whole(
    tmp_path_factory: Tmp, name: str, parts: list[bytes], data: st.DataObject
) -> None:
    packed = data.draw(st.booleans())
    chosen = data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=10))
    raw = bytearray(b"".join(gzip.compress(part) if packed else part for part in chosen))
    for _ in range(data.draw(st.integers(0, 3))):  # damage
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    cut_off = data.draw(st.integers(0, 40))
    file = tmp_path_factory.mktemp("archive") / (f"{name}.gz" if packed else name)
    file.write_bytes(raw[: len(raw) - cut_off])
    assert_same(SourceSpec(kind="warc", path=str(file)), data.draw(st.integers(1, 300)))


def test_pieces_of_archives_broken_on_purpose_give_the_records_of_the_whole() -> None:
    if not WARC.is_dir():
        pytest.skip(f"no test data at {WARC}")
    files = sorted(WARC.glob("*arc*"))
    assert sum(assert_same(SourceSpec(kind="warc", path=str(file)), 1) > 1 for file in files) > 5


def test_archive_cut_in_its_last_member_keeps_the_record_before_it(tmp_path: Path) -> None:
    file = tmp_path / "a.warc.gz"
    whole = gzip.compress(warc_record(b"aaa")) + gzip.compress(warc_record(b"bbb"))
    last = len(gzip.compress(warc_record(b"bbb")))
    for kept in range(3, last):  # from its magic number on
        file.write_bytes(whole[: len(whole) - last + kept])
        found = read(SourceSpec(kind="warc", path=str(file)), [Unit("")])
        assert [record.text or record.reason for record in found][:1] == ["aaa"]
        assert found[-1].reason == "truncated"


# --- tables


def write_table(file: Path, table: pa.Table, compression: str = "zstd") -> None:
    if file.suffix == ".orc":
        orc.write_table(table, file, stripe_size=16 << 10, batch_size=64, compression=compression)
    else:
        parquet.write_table(table, file, row_group_size=97, compression=compression)


def words(count: int) -> list[str | None]:
    """Texts that hardly compress, one in fifty missing."""
    return [None if n % 50 == 0 else f"{n} {pow(7919, n, 10**60)}" for n in range(1, count + 1)]


@pytest.mark.parametrize("name", ["a.parquet", "a.orc"])
@pytest.mark.parametrize("compression", ["uncompressed", "zlib", "snappy", "zstd"])
def test_pieces_of_a_table_name_each_row_by_its_number(tmp_path: Path, name: str, compression: str) -> None:
    if name == "a.parquet" and compression in ("zlib", "uncompressed"):
        compression = {"zlib": "gzip", "uncompressed": "none"}[compression]
    file, texts = tmp_path / name, words(5000)
    write_table(file, pa.table({"n": list(range(5000)), "text": texts}), compression)
    source = SourceSpec(kind=file.suffix[1:], path=str(file))
    assert assert_same(source, 30_000) > 2
    assert [(record.text, record.origin) for record in in_pieces(source, 30_000)[1]] == [
        (text, f"{name}@{row}") for row, text in enumerate(texts)
    ]


@pytest.mark.parametrize("compression", ["uncompressed", "zlib", "snappy", "zstd"])
@pytest.mark.parametrize("rows", [0, 1, 3000])
def test_orc_footer_gives_the_rows_of_each_stripe(tmp_path: Path, compression: str, rows: int) -> None:
    file = tmp_path / "a.orc"
    write_table(file, pa.table({"text": pa.array(words(rows), pa.string())}), compression)
    table = orc.ORCFile(file)
    read_by_arrow = [table.read_stripe(number).num_rows for number in range(table.nstripes)]
    assert [stripe.num_rows for stripe in orc_footer.stripes(file)] == read_by_arrow
    assert sum(stripe.size_bytes for stripe in orc_footer.stripes(file)) == table.content_length


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7])  # of two bytes


def with_lz4_footer(raw: bytes) -> bytes:
    """An ORC file whose footer is stored as it is, with one of LZ4 instead: a block of literals."""
    postscript = raw[-1 - raw[-1] :]
    length = postscript[1] & 0x7F | postscript[2] << 7
    footer = raw[-len(postscript) - length : -len(postscript)][3:]
    whole, rest = divmod(len(footer) - 15, 255)
    block = b"\xf0" + b"\xff" * whole + bytes([rest]) + footer
    packed = (len(block) << 1).to_bytes(3, "little") + block
    return raw[: -len(postscript) - length] + packed + b"\x08" + varint(len(packed)) + postscript[3:]


def test_orc_of_a_compression_that_is_not_unpacked_here_is_one_piece(tmp_path: Path) -> None:
    file, texts = tmp_path / "a.orc", words(3000)
    write_table(file, pa.table({"text": texts, **{f"column {n}": [1] * 3000 for n in range(40)}}), "lz4")
    file.write_bytes(with_lz4_footer(file.read_bytes()))
    with pytest.raises(ValueError, match="compression kind 4"):
        orc_footer.stripes(file)
    source = SourceSpec(kind="orc", path=str(file))
    assert assert_same(source, 1) == 1
    found = read(source, [Unit("")])
    assert [(record.text, record.origin) for record in found] == [
        (text, f"a.orc@{row}") for row, text in enumerate(texts)
    ]


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
def test_orc_footer_of_any_bytes_is_refused_or_read(tmp_path_factory: Tmp, content: bytes) -> None:
    file = tmp_path_factory.mktemp("orc") / "a.orc"
    file.write_bytes(content)
    with suppress(ValueError, pa.ArrowException):
        orc_footer.stripes(file)


@pytest.mark.parametrize("name", ["a.parquet", "a.orc"])
def test_damaged_part_of_a_table_costs_itself(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    write_table(file, pa.table({"text": words(5000)}), "zlib" if name == "a.orc" else "gzip")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 2000] = bytes(2000)
    file.write_bytes(raw)
    source = SourceSpec(kind=file.suffix[1:], path=str(file))
    assert assert_same(source, 20_000) > 2
    found = read(source, [Unit("")])
    assert {record.reason for record in found if record.text is None} >= {"unreadable"}
    assert sum(record.text is not None for record in found) > 2000
    assert found[-1].origin == f"{name}@4999"


def test_orc_reader_that_dies_costs_one_stripe(tmp_path: Path) -> None:
    file = tmp_path / "a.orc"
    write_table(file, pa.table({"text": words(3000)}), "uncompressed")
    records = read_unit(SourceSpec(kind="orc", path=str(file)), Unit(""), MAX_BYTES)
    assert next(records).origin == "a.orc@0"
    child = orc_file.reader()._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    found = list(records)
    (lost,) = [record for record in found if record.reason == "unreadable"]
    assert lost.detail == "OSError: the ORC reader ended with -9"
    second = orc_footer.stripes(file)[0].num_rows
    assert lost.origin == f"a.orc@{second}"
    assert len(found) == 3000 - orc_footer.stripes(file)[1].num_rows
    assert found[-1].origin == "a.orc@2999"


@given(st.integers(0, 10**6), st.integers(0, 2000), st.sampled_from(["a.parquet", "a.orc"]), st.integers(1, 4000))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_pieces_of_a_damaged_table_give_the_records_of_the_whole(
    tmp_path_factory: Tmp, place: int, size: int, name: str, piece_bytes: int
) -> None:
    """One bit, or up to 2000 bytes of zeros."""
    file = tmp_path_factory.mktemp("table") / name
    write_table(file, pa.table({"text": words(900)}))
    raw = bytearray(file.read_bytes())
    place %= len(raw)
    raw[place : place + max(size, 1)] = bytes(len(raw[place : place + size])) or bytes([raw[place] ^ 1])
    file.write_bytes(raw)
    assert_same(SourceSpec(kind=file.suffix[1:], path=str(file)), piece_bytes)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.parquet", "a.orc", "a.warc", "a.warc.gz"])
def test_file_that_is_not_what_it_is_called_is_refused_once_however_small_the_pieces(tmp_path: Path, name: str) -> None:
    kinds = {"a.txt": "lines", "a.jsonl": "jsonl", "a.warc.gz": "warc"}
    file = tmp_path / name
    file.write_bytes("not what it is called\n".encode("utf-16") * 40)
    source = SourceSpec(kind=kinds.get(name, file.suffix[1:]), path=str(file), columns=("id",))
    assert_same(source, 30)
