"""Files of evaluation sets, and the items in them. No Spark, no compiled code: a flow asks it for digests.

An item is a line of a .jsonl file, with all strings in it or those of the fields named, or a whole .txt file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from spark_jobs.errors import RequestError
from spark_jobs.specs import EvaluationSet

SUFFIXES = (".jsonl", ".txt")


class Item(NamedTuple):
    name: str  # `set/id`; the id is the field `id`, or the line or file
    texts: tuple[str, ...]


def files_of(chosen: EvaluationSet) -> list[Path]:
    """Raises: RequestError if there is no file."""
    root = Path(chosen.path)
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES)
    if not paths:
        raise RequestError(
            f"decontaminate: evaluation set {chosen.name!r}: no {' or '.join(SUFFIXES)} file at {chosen.path!r}"
        )
    return paths


def digest_of(chosen: EvaluationSet) -> str:
    """sha256 over the set's files: a changed set is another request."""
    digest = hashlib.sha256()
    for path in files_of(chosen):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_items(chosen: EvaluationSet) -> Iterator[Item]:
    """Raises: RequestError naming the line that is no JSON object."""
    for path in files_of(chosen):
        if path.suffix == ".txt":
            yield Item(f"{chosen.name}/{path.name}", (path.read_text(encoding="utf-8", errors="replace"),))
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
                assert isinstance(fields, dict)
            except (ValueError, AssertionError) as err:
                raise RequestError(f"{path}, line {number + 1}: not a JSON object; mend the evaluation set") from err
            chosen_fields = {name: fields[name] for name in chosen.fields or fields if name in fields}
            texts = tuple(text for value in chosen_fields.values() for text in _strings(value))
            yield Item(f"{chosen.name}/{fields.get('id', f'{path.name}:{number + 1}')}", texts)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _strings(child)
