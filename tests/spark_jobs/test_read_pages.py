import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from spark_jobs.readers import Unit, read_unit
from spark_jobs.records import Record
from spark_jobs.specs import SourceSpec

WARC = Path(__file__).parents[3] / "shared/data/web/warc"
EVERYTHING = Unit("", 0, 1 << 62)


def read(file: Path, kind: str = "warc", max_bytes: int = 1_000_000) -> list[Record]:
    return list(read_unit(SourceSpec(kind=kind, path=str(file)), EVERYTHING, max_bytes))


def outcomes(file: Path, **settings: int) -> list[str | None]:
    return [record.reason or record.text for record in read(file, **settings)]


def record(text: str, kind: str = "conversion", length: int | None = None, version: str = "WARC/1.0") -> bytes:
    body = text.encode()
    content = "application/http; msgtype=response" if kind == "response" else "text/plain"
    header = f"{version}\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://x/{text[:3]}\r\nContent-Type: {content}\r\n"
    return f"{header}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body + b"\r\n\r\n"


def response(page: str, status: str = "200 OK", content_type: str = "text/html; charset=utf-8") -> bytes:
    return record(f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n\r\n{page}", "response")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (record("bbb", length=50_000), "bad_record"),  # C5: Content-Length too big swallows what follows
        (record("bbb", length=1), "bad_record"),
        (record("bbb").replace(b"Content-Length", b"Content-Width"), "bad_record"),
        (record("bbb").replace(b"WARC/1.0", b"HTTP/1.0"), "bad_record"),
        (b"garbage\r\n\r\n" * 1000, "bad_record"),
        (record("b" * 200_000), "too_long"),
        (response("<p>x", "404 Not Found"), "http_status"),
        (response("PNG", content_type="image/png"), "not_text"),
        (response("<html></html>"), "html_empty"),
    ],
)
def test_archive_goes_on_behind_a_broken_record(tmp_path: Path, broken: bytes, reason: str) -> None:
    file = tmp_path / "a.warc"
    file.write_bytes(record("aaa") + broken + record("ccc") + record("ddd"))
    assert outcomes(file, max_bytes=10_000) == ["aaa", reason, "ccc", "ddd"]


@pytest.mark.parametrize("extra", [b"Content-Length: 999999999999\r\n", b"content-length : 4\r\n", b"X: \xff\xfe\r\n"])
def test_archive_does_not_believe_a_second_length(tmp_path: Path, extra: bytes) -> None:
    file = tmp_path / "a.warc"
    file.write_bytes(record("aaa").replace(b"\r\n\r\naaa", b"\r\n" + extra + b"\r\naaa") + record("bbb"))
    assert outcomes(file) == ["aaa", "bbb"]


def test_archive_page_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    body = gzip.compress(b"<p>" + b"x" * 50_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n"
    page = response("").partition(b"\r\n\r\n")[0].replace(b"Content-Length: ", b"X-Length: ")
    file = tmp_path / "a.warc"
    file.write_bytes(
        page + b"\r\nContent-Length: %d\r\n\r\n" % len(head + body) + head + body + b"\r\n\r\n" + record("bbb")
    )
    assert outcomes(file, max_bytes=100_000) == ["too_long", "bbb"]


@pytest.mark.parametrize("kind", ["request", "metadata", "revisit", "warcinfo"])
def test_archive_passes_over_records_without_text(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.warc"
    file.write_bytes(record("aaa") + record("bbb", kind) + response("<p>ccc"))
    assert outcomes(file) == ["aaa", "ccc"]


def test_archive_names_offset_and_address(tmp_path: Path) -> None:
    file = tmp_path / "a.warc.wet"
    file.write_bytes(record("aaa") + record("bbb"))
    assert [one.origin for one in read(file)] == [
        "a.warc.wet@0 http://x/aaa",
        f"a.warc.wet@{len(record('aaa'))} http://x/bbb",
    ]


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["plain", "gz"])
def test_archive_cut_short_keeps_what_came_before(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    whole = b"".join(pack(record(text)) for text in ("aaa", "bbb", "ccc"))
    file = tmp_path / "a.warc"
    file.write_bytes(whole[:-10])
    assert outcomes(file)[:2] == ["aaa", "bbb"]
    assert outcomes(file)[-1] == "truncated"
    assert read(file)[-1].origin == "a.warc"


@pytest.mark.parametrize("place", [12, 30, -6, -2])
def test_archive_goes_on_behind_a_damaged_member(tmp_path: Path, place: int) -> None:
    damaged = bytearray(gzip.compress(record("bbb" * 50)))
    damaged[place] ^= 0xFF
    file = tmp_path / "a.warc.gz"
    file.write_bytes(
        gzip.compress(record("aaa")) + damaged + gzip.compress(record("ccc")) + gzip.compress(record("ddd"))
    )
    found = outcomes(file)
    assert found[0] == "aaa"
    assert found[-2:] == ["ccc", "ddd"]
    assert found.count("bad_record") == 1


@pytest.mark.parametrize("content", [b"", b"not an archive", gzip.compress(b"")])
def test_archive_that_is_none_gives_rejects_at_most(tmp_path: Path, content: bytes) -> None:
    for name in ("a.warc", "a.warc.gz"):
        (tmp_path / name).write_bytes(content)
        assert all(one.text is None for one in read(tmp_path / name))


def test_archives_broken_on_purpose_are_read_as_far_as_they_go() -> None:
    if not WARC.is_dir():
        pytest.skip(f"no test data at {WARC}")
    found = {file.name: outcomes(file) for file in sorted(WARC.glob("*.warc*"))}
    texts = {name: [one for one in rows if one and " " in one] for name, rows in found.items()}
    for name in (
        "example.warc", "example.warc.gz", "example-bad-non-chunked.warc.gz", "example-wrong-chunks.warc.gz",
        "example-resource.warc.gz", "example-wget-bad-target-uri.warc.gz", "example-bad.warc.gz.bad",
    ):  # fmt: skip
        assert len(texts[name]) == 1, name
        assert texts[name][0].startswith("Example Domain")
    assert texts["example-iana.org-chunked.warc"][0].startswith("Internet Assigned Numbers Authority")
    assert found["example-trunc.warc"] == ["bad_record"]
    assert found["example-bad.warc.gz.bad"][1:] == ["http_status"]
    assert found["example-space-in-target-uri.warc.gz"] == ["not_text"]
    assert found["post-test.warc.gz"] == ["not_text"] * 3
    assert found["example-digest.warc"] == []


def arc_record(page: str, address: str = "http://x/a page", length: int | None = None) -> bytes:
    body = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{page}".encode()
    size = len(body) if length is None else length
    return f"{address} 127.0.0.1 20140216050221 text/html {size}\n".encode() + body + b"\n"


ARC_HEAD = b"filedesc://a.arc 0.0.0.0 20140216050221 text/plain 32\n1 0 Somebody\nURL IP-address etc\n\n"


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("broken", "reasons"),
    [
        (b"", []),
        (arc_record("<p>bbb", length=50_000), ["bad_record"]),
        (arc_record("<p>bbb", length=20), ["bad_record"]),
        (arc_record("<p>bbb").replace(b"127.0.0.1", b"nowhere"), ["bad_record"]),
        (b"dns:x 127.0.0.1 20140216050221 text/dns 4\n1234\n", []),
        (b"garbage\n" * 9000, ["bad_record"]),
        (arc_record("<p>" + "b" * 200_000), ["too_long"]),
    ],
)
def test_old_archive_is_read_like_a_new_one(
    tmp_path: Path, pack: Callable[[bytes], bytes], broken: bytes, reasons: list[str]
) -> None:
    file = tmp_path / ("a.arc" if pack(b"") == b"" else "a.arc.gz")
    file.write_bytes(
        b"".join(pack(part) for part in (ARC_HEAD, arc_record("<p>aaa"), broken, arc_record("<p>ccc")) if part)
    )
    assert outcomes(file, max_bytes=10_000) == ["aaa", *reasons, "ccc"]
    assert read(file)[0].origin == f"{file.name}@{len(ARC_HEAD)} http://x/a%20page"
    file.write_bytes(file.read_bytes()[:-20])
    assert outcomes(file, max_bytes=10_000)[: 1 + len(reasons)] == ["aaa", *reasons]
    assert outcomes(file, max_bytes=10_000)[-1] == "truncated"


def test_old_archives_of_others_are_read() -> None:
    if not WARC.is_dir():
        pytest.skip(f"no test data at {WARC}")
    for name in ("example.arc", "example.arc.gz"):
        (text,) = outcomes(WARC / name)
        assert text is not None
        assert text.startswith("Example Domain")
    assert outcomes(WARC / "bad.arc") == ["bad_record", "http_status", "bad_record"]


def test_html_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "a.html.gz"
    file.write_bytes(gzip.compress("<meta charset=koi8-r><p>Привет".encode("koi8-r")))
    assert outcomes(file, kind="html") == ["Привет"]
    file.write_bytes(gzip.compress(b"<p>" + b"x" * 30_000))
    assert outcomes(file, kind="html", max_bytes=1000) == ["too_long"]
