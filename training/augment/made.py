"""Made rows: a changed copy of a training row, or the reason why there is none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.augment.allowed import SHARED_KEY, Row, classes_of
from training.augment_spec import Method

INPUTS = ("text", "pair", "tokens", "messages")
CONTENT = (*INPUTS, "labels", "value", "tags", "spans", "target", "chosen", "rejected", "group")


@dataclass(frozen=True)
class Made:
    """A new row, all columns."""

    row: dict[str, Any]


@dataclass(frozen=True)
class NotMade:
    """Why a copy was not made, a word for the counts: unchanged, no_partner, empty, length ..."""

    reason: str


Result = Made | NotMade


def made_row(row: Row, task: str, kind: str, copy: int, changes: Mapping[str, Any]) -> Result:
    """The row with changes, its own id and where it came from. A row without a change is not made.

    A copy of a candidate belongs to a copy of its query: a group of its own, the same for all its candidates.
    """
    if all(row[column] == value for column, value in changes.items()):
        return NotMade("unchanged")
    new = {**row, **changes, "made_by": kind, "made_from": row["id"]}
    group = SHARED_KEY.get(task)
    if group and row[group]:
        new[group] = f"{row[group]}/{kind}/{copy}"
    return Made({**new, "id": content_id(new)})


def content_id(row: Row) -> str:
    """32 hex digits of a hash of everything a model sees or learns: rows made alike have one id."""
    content = json.dumps([row.get(name) for name in CONTENT], ensure_ascii=True, sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def input_key(row: Row) -> int:
    """64 bits of a hash of the inputs alone: equal for two rows that ask the same, whatever their label."""
    inputs = json.dumps([row.get(name) for name in INPUTS], ensure_ascii=True, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(inputs.encode(), digest_size=8).digest(), "big")


def wanted(row: Row, spec: Method) -> bool:
    return not spec.only_labels or not set(spec.only_labels).isdisjoint(classes_of(row))
