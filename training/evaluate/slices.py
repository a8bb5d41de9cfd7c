"""Parts of the held-out documents that are looked at on their own: by source, by language, by length."""

from __future__ import annotations

from bisect import bisect_right

import pyarrow as pa

LENGTHS = (512, 2048, 8192)  # bytes of the text that is scored; a length is in the part above the edge it equals
LENGTH_NAMES = ("under 512 bytes", "512 to 2,047 bytes", "2,048 to 8,191 bytes", "8,192 bytes or more")
UNKNOWN = "unknown"  # language of a document whose tokens were made before it was kept, or not asked for


def length_name(num_bytes: int) -> str:
    return LENGTH_NAMES[bisect_right(LENGTHS, num_bytes)]


def slices_of(documents: pa.Table) -> dict[str, frozenset[str]]:
    """Ids of each slice, named `source=`, `language=` or `length=` and the value, of a scorecard's table."""
    columns = {"source": documents.column("source").to_pylist()}
    if "language" in documents.column_names:  # scorecards of before have none
        columns["language"] = [name or UNKNOWN for name in documents.column("language").to_pylist()]
    columns["length"] = [length_name(size) for size in documents.column("num_bytes").to_pylist()]
    ids = documents.column("doc_id").to_pylist()
    found: dict[str, set[str]] = {}
    for by, values in columns.items():
        for doc_id, value in zip(ids, values, strict=True):
            found.setdefault(f"{by}={value}", set()).add(doc_id)
    return {name: frozenset(members) for name, members in sorted(found.items())}
