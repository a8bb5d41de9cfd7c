"""Files of lines: JSON Lines, and one document a line. Large plain files are cut into byte ranges at starts of lines."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from spark_jobs.byte_streams import BLOCK_BYTES, decompressed, head, lines
from spark_jobs.records import Record, Refused, field_record, new_columns
from spark_jobs.specs import SourceSpec
from spark_jobs.text_encoding import MARKS, detect, known

ESCAPED = 6  # bytes that JSON may take for one byte of text: \u00XX
HEAD_BYTES = 1 << 16  # by which the encoding of a file of lines is told


def json_lines(origin: str, file: Path, first: int, stop: int, source: SourceSpec, max_bytes: int) -> Iterator[Record]:
    limit = ESCAPED * max_bytes + BLOCK_BYTES
    declared = {source.text_column, *source.columns} if source.columns else None
    for offset, line in lines(decompressed(file, first), first, stop, limit):
        if line is None or line.strip():  # an empty line is no record
            place = f"{origin}@{offset}"
            value = _parsed(place, line, limit)
            if isinstance(value, Record):
                yield value
                continue
            if declared and not declared.issuperset(value):
                yield from new_columns(origin, value, declared)
                declared |= value.keys()
            yield field_record(place, value.get(source.text_column), f"key {source.text_column!r}")


def _parsed(origin: str, line: bytes | None, limit: int) -> Record | dict[str, object]:
    if line is None:
        return Record(origin, None, "too_long", threshold=float(limit), detail="a line without end")
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as err:
        return Record(origin, None, "not_utf8", detail=f"byte {err.start} of the line")
    except (ValueError, RecursionError) as err:
        return Record(origin, None, "bad_json", detail=str(err)[:200])
    if not isinstance(value, dict):
        return Record(origin, None, "not_an_object", detail=type(value).__name__)
    return value


def text_lines(origin: str, file: Path, first: int, stop: int, source: SourceSpec, max_bytes: int) -> Iterator[Record]:
    """Raises: Refused for an encoding in which a byte 0A is no line end."""
    encoding = encoding_of_lines(file, source.encoding)
    limit = 4 * max_bytes
    for offset, line in lines(decompressed(file, first), first, stop, limit):
        place = f"{origin}@{offset}"
        if line is None:
            yield Record(place, None, "too_long", threshold=float(limit), detail="a line without end")
        elif line := line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r"):
            try:
                yield Record(place, line.decode(encoding))
            except UnicodeDecodeError as err:
                yield Record(place, None, "bad_encoding", detail=f"byte {err.start} of the line is no {encoding}")


def encoding_of_lines(file: Path, declared: str) -> str:
    """Raises: Refused."""
    start = head(file, HEAD_BYTES)
    name = known(declared) or next((name for mark, name in MARKS if start.startswith(mark)), "") or detect(start)
    if name.startswith(("utf-16", "utf-32")):
        raise Refused(
            "bad_encoding", f"the file is {name}, whose lines cannot be told by their bytes; convert it to UTF-8"
        )
    return name
