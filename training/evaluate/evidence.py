"""What the gate knows of a model: its scores by document and by item, its size and its speed. Read from published outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from training.evaluate.slices import slices_of
from training.manifests import Scorecard


@dataclass(frozen=True)
class Benchmark:
    """Scores by item id, higher is better. right_or_wrong: each is 1 or 0."""

    values: Mapping[str, float]
    right_or_wrong: bool = True


@dataclass(frozen=True)
class Evidence:
    """documents: (nats, bytes) by id. slices: ids of the documents of each slice, as `source=web`. Sizes and speeds only
    where a guard asks for them."""

    bits_per_byte: float
    documents: Mapping[str, tuple[float, int]]
    slices: Mapping[str, frozenset[str]] = field(default_factory=dict)
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)
    weight_bytes: int | None = None
    seconds_per_token: float | None = None


def evidence_of(scorecard: Scorecard) -> Evidence:
    table = pq.read_table(Path(scorecard.folder()) / "documents.parquet", use_threads=False)
    columns = table.to_pydict()
    scores = zip(columns["nats"], columns["num_bytes"], strict=True)
    documents = dict(zip(columns["doc_id"], scores, strict=True))
    return Evidence(scorecard.bits_per_byte, documents, slices_of(table))


def benchmarks_of(items: Path) -> dict[str, Benchmark]:
    """From a table of items: `right`, or `value` where an answer is more or less good. An item without a finite value is left
    out: the gate sees that it is missing."""
    columns = ["benchmark", "id", "right", "value"]
    found: dict[str, dict[str, float]] = {}
    graded: set[str] = set()
    for row in pq.read_table(items, columns=columns, use_threads=False).to_pylist():
        scores = found.setdefault(row["benchmark"], {})
        if row["right"] is not None:
            scores[row["id"]] = float(row["right"])
        else:
            graded.add(row["benchmark"])
            if row["value"] is not None and math.isfinite(row["value"]):
                scores[row["id"]] = row["value"]
    return {name: Benchmark(values, name not in graded) for name, values in sorted(found.items())}
