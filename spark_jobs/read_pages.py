"""HTML files and web archives (WARC 1.0/1.1, WET, and ARC): one page, one document.

Records of an archive are framed here, so that a broken one costs itself and nothing behind it; their headers, HTTP, chunks
and content encodings are read by FastWARC. Documents are HTTP responses with status 2xx and resources, of HTML or plain text,
and conversions (WET). Requests, metadata and revisits hold no text of their own and are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spark_jobs.byte_streams import whole
from spark_jobs.html_text import PageFailed, PageTimeout, extractor
from spark_jobs.records import Record
from spark_jobs.specs import SourceSpec
from spark_jobs.text_encoding import Undecodable, declared_in, decode
from spark_jobs.warc_frames import ARC, HEADER_END, Cut, cuts, form_of, frames

HTML_PER_TEXT = 10  # bytes of a page that may stand for one of text: longer pages are refused unread
HTML_TYPES = ("text/html", "application/xhtml+xml")
READ_BYTES = 1 << 20
WITH_TEXT = ("response", "resource", "conversion")


def html_file(origin: str, file: Path, source: SourceSpec, max_bytes: int) -> Iterator[Record]:
    limit = HTML_PER_TEXT * max_bytes
    data = whole(file, limit)
    if len(data) > limit:
        yield Record(origin, None, "too_long", float(len(data)), float(limit), "at least this long, as HTML")
    else:
        yield page_record(origin, data, source.encoding, source.html_timeout_s)


def text_file(origin: str, file: Path, source: SourceSpec, max_bytes: int) -> Iterator[Record]:
    limit = 4 * max_bytes  # bytes of UTF-32 that may stand for one of UTF-8
    data = whole(file, limit)
    if len(data) > limit:
        yield Record(origin, None, "too_long", float(len(data)), float(max_bytes), "at least this long")
    else:
        yield text_record(origin, data, source.encoding)


def text_record(origin: str, data: bytes, declared: str) -> Record:
    try:
        return Record(origin, decode(data, declared)[0])
    except Undecodable as err:
        return Record(origin, None, "bad_encoding", detail=str(err))


def page_record(origin: str, page: bytes, declared: str, timeout_s: float) -> Record:
    try:
        text = extractor(timeout_s).text_of(decode(page, declared or declared_in(page))[0])
    except Undecodable as err:
        return Record(origin, None, "bad_encoding", detail=str(err))
    except PageTimeout as err:
        return Record(origin, None, "html_timeout", threshold=timeout_s, detail=str(err))
    except PageFailed as err:
        return Record(origin, None, "html_failed", detail=str(err))
    return Record(origin, text) if text.strip() else Record(origin, None, "html_empty", detail="the page has no text")


def archive_cuts(file: Path, max_bytes: int, piece_bytes: int) -> list[Cut]:
    return cuts(file, HTML_PER_TEXT * max_bytes, piece_bytes)


def archive_records(
    origin: str, file: Path, first: int, stop: int, place: int, source: SourceSpec, max_bytes: int
) -> Iterator[Record]:
    """Raises: EOFError if the archive ends inside a record, after everything before it."""
    limit, is_arc = HTML_PER_TEXT * max_bytes, form_of(file) is ARC
    for frame in frames(file, limit, first, stop, place):
        where = f"{origin}@{frame.offset}"
        if frame.data is None:
            yield Record(where, None, frame.reason, detail=frame.detail)
        else:
            data = as_warc(frame.data) if is_arc else frame.data
            yield from _frame_records(where, data, source, limit)


def as_warc(data: bytes) -> bytes:
    """A record of ARC in the form of WARC. What is no page (the file's description, answers of name servers) is metadata."""
    line = ARC.header.match(data)
    assert line is not None, "a frame begins with its header"
    address, body = line["address"], data[line.end() :]
    kind = b"response" if address.startswith((b"http:", b"https:")) else b"metadata"
    header = b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Target-URI: %s\r\nContent-Type: application/http; msgtype=response\r\n"
    return header % (kind, address) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _frame_records(place: str, data: bytes, source: SourceSpec, limit: int) -> Iterator[Record]:
    try:
        kind, address, status, content_type, charset, body = _parsed(data, limit)
    except Exception as err:  # noqa: BLE001  whatever the library makes of a damaged record
        yield Record(place, None, "bad_record", detail=f"{type(err).__name__}: {err}"[:200])
        return
    if kind not in WITH_TEXT or address.startswith("metadata:"):  # the crawler's own logs
        return
    place = f"{place} {address}" if address else place
    if kind == "response" and not 200 <= status < 300:
        yield Record(place, None, "http_status", float(status), detail=content_type)
    elif len(body) > limit:
        yield Record(place, None, "too_long", float(len(body)), float(limit), "at least this long, unpacked")
    elif kind == "conversion" or content_type == "text/plain":
        yield text_record(place, body, "utf-8" if kind == "conversion" else charset)
    elif content_type in HTML_TYPES:
        yield page_record(place, body, charset, source.html_timeout_s)
    else:
        yield Record(place, None, "not_text", detail=content_type or "no content type")


def with_true_length(data: bytes) -> bytes:
    """The record with one Content-Length, its real one: FastWARC allocates what a header asks for before it looks, and ends
    the process if it cannot (2.0.1; a second header of 999999999999 is enough).
    """
    end = HEADER_END.search(data)
    if end is None:
        raise ValueError("a header without end")
    body = data[end.end() :]
    version, *lines = (line.rstrip(b"\r") for line in data[: end.start()].split(b"\n"))
    kept = (line for line in lines if b"content-length" not in line.lower())
    return b"\r\n".join([version, b"Content-Length: %d" % len(body), *kept, b"", body])


def _parsed(data: bytes, limit: int) -> tuple[str, str, int, str, str, bytes]:
    """(WARC-Type, target address, HTTP status or 0, content type, charset, payload) of one record; of a payload that unpacks
    to more than `limit` bytes the beginning, longer than that.
    """
    from fastwarc.warc import WarcRecord

    record: Any = WarcRecord.from_bytes(with_true_length(data))
    kind = str(record.record_type)
    address = (record.headers.get("WARC-Target-URI") or "").strip("<> ").replace(" ", "%20")[:2000]
    header, status = record.headers.get("Content-Type") or "", 0
    if kind == "response":
        record.parse_http(auto_decode="all")
        status = int(record.http_headers.status_code or 0)
        header = record.http_headers.get("Content-Type") or ""
    content_type, _, parameters = header.partition(";")
    _, _, charset = parameters.partition("charset=")
    body = b""
    while kind in WITH_TEXT and len(body) <= limit:
        block = bytes(record.reader.read(READ_BYTES))
        if not block:
            break
        body += block
    return kind, address, status, content_type.strip().lower(), charset.split(";")[0].strip(" \"'"), body
