"""What the readers of labelled sources yield, and how a cell of any type becomes what a column holds.

An example has the columns of `CONTENT`, `group` and `split`; None where the source has none. Whether they fit together is
told later (labelled_checks.py); here only the types are seen to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from spark_jobs.label_spec import LabelSource
from spark_jobs.schemas import Schema

CONTENT: Schema = {
    "text": "string",
    "pair": "string",
    "labels": "array<string>",
    "value": "double",
    "tokens": "array<string>",
    "tags": "array<string>",
    "spans": "array<struct<start:int,end:int,label:string>>",
    "target": "string",
    "messages": "array<struct<role:string,content:string>>",
    "chosen": "string",
    "rejected": "string",
}
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "": None}  # fmt: skip
LARGEST = 2**31 - 1


class Example(NamedTuple):
    origin: str
    fields: dict[str, Any]


class BadField(ValueError):
    """A cell that cannot be what its column holds; the row is a reject."""


def as_text(cell: Any) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool | int | float):
        return json.dumps(cell)
    if isinstance(cell, bytes):
        return cell.decode()
    raise BadField(f"{type(cell).__name__} where a text was wanted")


def as_labels(cell: Any, source: LabelSource) -> list[str] | None:
    """A list without repeats, sorted, so that its order carries nothing."""
    if cell is None:
        return None
    if isinstance(cell, str):
        cell = cell.split(source.label_separator) if source.label_separator else [cell]
    names = [str(as_text(label)).strip() for label in (cell if isinstance(cell, list) else [cell])]
    return sorted({source.classes.get(name, name) for name in names if name})


def as_number(cell: Any) -> float | None:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        number = float(cell)
    except (TypeError, ValueError) as err:
        raise BadField(f"{str(cell)[:40]!r} where a number was wanted") from err
    if not math.isfinite(number):
        raise BadField(f"{number} where a finite number was wanted")
    return number


def as_words(cell: Any) -> list[str] | None:
    if cell is None:
        return None
    words = cell.split() if isinstance(cell, str) else cell
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BadField(f"{type(cell).__name__} where a list of words was wanted")
    return words


def as_spans(cell: Any) -> list[dict[str, Any]] | None:
    """{start, end, label} each; {text: [...], answer_start: [...]} and a list of {text, answer_start} are taken for answers."""
    cell = _unpacked(cell)
    if cell is None:
        return None
    if isinstance(cell, dict):
        texts, starts = cell.get("text"), cell.get("answer_start")
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise BadField("answers without lists text and answer_start of one length")
        cell = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(cell, list):
        raise BadField(f"{type(cell).__name__} where a list of spans was wanted")
    return [_span(item) for item in cell]


def _span(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadField(f"{type(item).__name__} where a span was wanted")
    if "answer_start" in item:
        start, text = _place(item["answer_start"]), as_text(item.get("text"))
        if not text:
            raise BadField("an answer without text")
        return {"start": start, "end": start + len(text), "label": text}
    return {
        "start": _place(item.get("start")),
        "end": _place(item.get("end")),
        "label": as_text(item.get("label")) or "",
    }


def _place(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # a table that had gaps
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST:
        raise BadField(f"{str(value)[:40]!r} where the place of a character was wanted")
    return value


def as_messages(cell: Any) -> list[dict[str, str]] | None:
    cell = _unpacked(cell)
    if cell is None:
        return None
    if not isinstance(cell, list) or not all(isinstance(item, dict) for item in cell):
        raise BadField("no list of {role, content}")
    return [{"role": as_text(item.get("role")) or "", "content": as_text(item.get("content")) or ""} for item in cell]


def _unpacked(cell: Any) -> Any:
    """CSV has no lists: there they are JSON."""
    if not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell) if cell.strip() else None
    except (ValueError, RecursionError) as err:
        raise BadField(f"no JSON: {err}") from err


def as_split(cell: Any) -> str | None:
    name = (as_text(cell) or "").strip().lower()
    if name not in SPLITS:
        raise BadField(f"split {name[:40]!r}, wanted train, validation or test")
    return SPLITS[name]


PARSERS: dict[str, Callable[[Any], Any]] = {
    "text": as_text, "pair": as_text, "value": as_number, "tokens": as_words, "tags": as_words, "spans": as_spans,
    "target": as_text, "messages": as_messages, "chosen": as_text, "rejected": as_text, "group": as_text, "split": as_split,
}  # fmt: skip


def example_of(cells: dict[str, Any], source: LabelSource) -> dict[str, Any]:
    """Field -> value from field -> cell. Raises: BadField naming the field."""
    fields: dict[str, Any] = {}
    for field, cell in cells.items():
        try:
            fields[field] = as_labels(cell, source) if field == "labels" else PARSERS[field](cell)
        except (BadField, UnicodeDecodeError) as err:
            raise BadField(f"{field}: {err}") from err
    return fields
