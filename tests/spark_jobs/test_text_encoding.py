from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.text_encoding import Undecodable, declared_in, decode, known

UDHR = Path(__file__).parents[3] / "shared/data/text/udhr_encodings"
# The encodings that the suffix of a file stands for; the legacy fonts among the files have no codec and are left out.
SUFFIXES = {
    "UTF8": ["utf-8"], "Latin1": ["cp1252"], "Latin2": ["cp1250", "iso8859-2"], "Cyrillic": ["cp1251"], "Greek": ["cp1253"],
    "Hebrew": ["cp1255"], "Arabic": ["cp1256"], "Turkish": ["cp1254"], "Baltic": ["cp1257"], "SJIS": ["cp932"],
    "EUC": ["euc_jp"], "JIS": ["iso2022_jp_2"], "GB2312": ["gb18030"], "HZ": ["hz"], "Unicode": ["utf-16"],
}  # fmt: skip
RUSSIAN = "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью."
CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。"
JAPANESE = "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"


def test_declarations_in_many_encodings_are_nearly_all_decoded_right() -> None:
    if not UDHR.is_dir():
        pytest.skip(f"no test data at {UDHR}")
    wrong = []
    files = [file for file in sorted(UDHR.iterdir()) if file.name.rsplit("-", 1)[-1] in SUFFIXES]
    for file in files:
        data = file.read_bytes()
        text, _ = decode(data)
        truths = [data.decode(name, "ignore").lstrip("\ufeff") for name in SUFFIXES[file.name.rsplit("-", 1)[-1]]]
        if text.replace("\ufffd", "") not in truths:
            wrong.append(file.name)
    assert len(files) > 300
    assert 1 - len(wrong) / len(files) >= 0.96  # 306 of 318; some of the other names are wrong themselves


@pytest.mark.parametrize(
    ("data", "text", "name"),
    [
        (b"", "", "utf-8"),
        (b"plain", "plain", "utf-8"),
        (b"caf\xe9", "café", "cp1252"),
        (b"\xef\xbb\xbfcaf\xc3\xa9", "café", "utf-8"),
        ("Grüße, Ελλάδα".encode()[:-1], "Grüße, Ελλάδ", "utf-8"),  # cut inside the last character
        ("naïve résumé".encode("utf-16"), "naïve résumé", "utf-16-le"),
        ("naïve résumé of a long text".encode("utf-16-be"), "naïve résumé of a long text", "utf-16-be"),
        (RUSSIAN.encode("cp1251"), RUSSIAN, "cp1251"),
        (RUSSIAN.encode("koi8-r"), RUSSIAN, "koi8-u"),
        (CHINESE.encode("gb18030"), CHINESE, "gb18030"),
        (JAPANESE.encode("shift_jis"), JAPANESE, "cp932"),
        (JAPANESE.encode("iso2022_jp"), JAPANESE, "iso2022_jp_2"),
        (b"if a ~{ b ~} c", "if a ~{ b ~} c", "utf-8"),
    ],
)  # fmt: skip
def test_decode_finds_the_encoding(data: bytes, text: str, name: str) -> None:
    assert decode(data)[0] == text
    assert decode(data)[1] in (name, known(name))


@pytest.mark.parametrize(
    ("data", "declared", "text"),
    [
        (b"\xc0\xe1\xe2", "windows-1251", "Абв"),
        (b"it\x92s", "iso-8859-1", "it’s"),  # browsers read latin-1 as Windows-1252
        ("Grüße".encode(), "iso-8859-1", "Grüße"),  # valid UTF-8 beats what is declared
        (b"caf\xe9", "no-such-charset", "café"),
        (b"caf\xe9", "hex", "café"),
        (b"caf\xe9", "utf-8", "café"),
    ],
)
def test_decode_believes_a_declaration_that_fits(data: bytes, declared: str, text: str) -> None:
    assert decode(data, declared)[0] == text


def test_decode_keeps_a_text_with_a_few_stray_bytes_and_refuses_one_with_many() -> None:
    good = RUSSIAN.encode() * 20
    assert decode(good[:600] + b"\xff" + good[600:])[0].count("\ufffd") == 1
    for data in (bytes(range(256)) * 8, b"\x89PNG\r\n\x1a\n" + b"\x00\x01\x02\x03" * 100):
        with pytest.raises(Undecodable):
            decode(data)


@given(st.binary(max_size=60), st.sampled_from(["", "utf-8", "cp1251", "utf-16", "shift_jis", "x"]))
@settings(deadline=None, max_examples=200)
def test_decode_of_any_bytes_is_text_or_refused(data: bytes, declared: str) -> None:
    try:
        text, name = decode(data, declared)
    except Undecodable:
        return
    assert known(name)
    text.encode()


@pytest.mark.parametrize(
    ("page", "label"),
    [
        (b'<html><head><meta charset="windows-1251">', "windows-1251"),
        (b"<meta http-equiv='Content-Type' content='text/html; charset=koi8-r'>", "koi8-r"),
        (b'<?xml version="1.0" encoding="iso-8859-2"?><html>', "iso-8859-2"),
        (b"<meta charset=utf-16>", "utf-8"),
        (b"<p>charset=x</p>", ""),
    ],
)
def test_declared_in_reads_the_head_of_a_page(page: bytes, label: str) -> None:
    assert declared_in(page) == label
