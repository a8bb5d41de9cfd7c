"""What every reader yields: documents, and the records that stand for what cannot be one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

NEW_COLUMN = "@column.new"  # not a reject: a column that the source's declared schema lacks; `detail` names it
MAX_NEW_COLUMNS = 100  # reported of one unit: data with a key a row must not flood the report


class Record(NamedTuple):
    """A document (`reason` None), or what stands for it among the rejects."""

    origin: str
    text: str | None
    reason: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str = ""


class Refused(Exception):
    """The whole file (or what is left of it) is one reject."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def field_record(origin: str, text: Any, what: str) -> Record:
    """The record of a field that should be text."""
    if text is None:
        return Record(origin, None, "no_text", detail=f"{what} is missing or null")
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as err:
            return Record(origin, None, "not_utf8", detail=f"byte {err.start} of the text")
    if not isinstance(text, str):
        return Record(origin, None, "text_not_a_string", detail=f"{what} is {type(text).__name__}")
    return Record(origin, text)


def new_columns(origin: str, names: Iterable[str], declared: Iterable[str]) -> Iterator[Record]:
    for name in sorted(set(names) - set(declared))[:MAX_NEW_COLUMNS]:
        yield Record(origin, None, NEW_COLUMN, detail=name)


def require_columns(names: list[str], text_column: str, declared: Iterable[str]) -> None:
    """Raises: Refused if the text column or a declared one is gone."""
    gone = [name for name in (text_column, *declared) if name not in names]
    if gone:
        raise Refused(
            "no_column", f"no column {', '.join(map(repr, gone))}, only {', '.join(names)[:200]}; mend the source"
        )
