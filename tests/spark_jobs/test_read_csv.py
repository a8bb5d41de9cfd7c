import gzip
from pathlib import Path

import pytest

from spark_jobs.byte_streams import line_start
from spark_jobs.readers import Unit, read_unit
from spark_jobs.records import NEW_COLUMN
from spark_jobs.specs import SourceSpec


def outcomes(kind: str, file: Path, first: int = 0, stop: int = 1 << 62, **fields: object) -> list[str]:
    """Texts, reasons in brackets, and the names of new columns after a plus, in the order of the file."""
    found = []
    for record in read_unit(SourceSpec(kind=kind, path=str(file), **fields), Unit("", first, stop), 1000):
        if record.reason == NEW_COLUMN:
            found.append(f"+{record.detail}")
        else:
            found.append(record.text if record.reason is None else f"[{record.reason}]")
    return found


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (b"1,a\n2,b\n", ["a", "b"]),
        (b'1,"a, ""b""\nc"\r\n2,d', ['a, "b"\nc', "d"]),
        (b"1,a\n2\n3,c,4\n\n5,e\n", ["a", "[bad_csv]", "[bad_csv]", "e"]),
        (b"1,a\n2,\xff\n3,c\n", ["a", "[not_utf8]", "c"]),
        (b"1,a\n2," + b"x" * 3000 + b"\n3,c\n", ["a", "[too_long]", "c"]),
        (b"1,a\n2," + b"x" * 2_000_000 + b"\n3,c\n", ["a", "[too_long]", "c"]),
        (b"1,\n2,a\x00b\n", ["", "a\x00b"]),
        (b"", []),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_csv_row_that_is_bad_is_one_reject_and_the_file_goes_on(
    tmp_path: Path, rows: bytes, expected: list[str], packed: bool
) -> None:
    file = tmp_path / ("a.csv.gz" if packed else "a.csv")
    raw = b"\xef\xbb\xbfid, text\r\n" + rows
    file.write_bytes(gzip.compress(raw) if packed else raw)
    assert outcomes("csv", file, encoding="utf-8") == expected


def test_csv_in_another_encoding_and_with_another_delimiter(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    text = "Все люди рождаются свободными и равными в своем достоинстве и правах."
    file.write_bytes(f"text;n\n{text};1\n".encode("cp1251"))
    assert outcomes("csv", file, delimiter=";") == [text]
    file.write_bytes(f"text\n{text}\n".encode("utf-16"))
    assert outcomes("csv", file) == ["[bad_encoding]"]


def test_csv_cut_at_any_place_gives_the_rows_of_the_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"id,text\n" + b"".join(b"%d,row %d\n" % (n, n) for n in range(30)))
    whole = outcomes("csv", file, quoted_newlines=False)
    assert len(whole) == 30
    for near in range(1, file.stat().st_size, 7):
        cut = line_start(file, near)
        assert outcomes("csv", file, 0, cut) + outcomes("csv", file, cut) == whole


def test_columns_that_are_new_are_reported_and_missing_ones_refuse_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"id,text,lang\n1,a,en\n")
    assert outcomes("csv", file) == ["a"]
    assert outcomes("csv", file, columns=("id", "lang")) == ["a"]
    assert outcomes("csv", file, columns=("id",)) == ["+lang", "a"]
    assert outcomes("csv", file, columns=("id", "gone")) == ["[no_column]"]
    assert outcomes("csv", file, text_column="body") == ["[no_column]"]
    file.write_bytes(b"")
    assert outcomes("csv", file) == ["[no_column]"]


def test_jsonl_keys_that_are_new_are_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"l":null}\n{"l":"mit"}\n{"l":"x","new":1}\n{"l":"y","new":2}\n')
    assert outcomes("jsonl", file, text_column="l") == ["[no_text]", "mit", "x", "y"]
    assert outcomes("jsonl", file, text_column="l", columns=("id",)) == ["[no_text]", "mit", "+new", "x", "y"]


def test_lines_are_documents(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffGrüße\r\n\nzwei\n".encode() + b"\xff\nvier")
    assert outcomes("lines", file, encoding="utf-8") == ["Grüße", "zwei", "[bad_encoding]", "vier"]
    file.write_bytes("Grüße\nÄrger über Öl".encode("latin-1"))
    assert outcomes("lines", file) == ["Grüße", "Ärger über Öl"]
    file.write_bytes(b"x" * 5000 + b"\nb\n")
    assert outcomes("lines", file) == ["[too_long]", "b"]


@pytest.mark.parametrize(
    ("encoding", "cut"),
    [("iso2022_jp_2", b'\x1b$B"'), ("iso2022_kr", b"\x1b$)C\x0e!"), ("hz", b"~{!"), ("shift_jis", b"\x81"), ("gb18030", b"\x81\x30")],
)  # fmt: skip
def test_csv_row_that_ends_inside_a_character_is_one_reject(tmp_path: Path, encoding: str, cut: bytes) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"text\nfirst\n" + cut + b"\nlast\n")
    first, middle, last = outcomes("csv", file, encoding=encoding)
    assert (first, middle[0], last) == ("first", "[", "last")
