"""What a benchmark came to: scores.json, one entry a benchmark, and items.parquet, one row an item."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from spark_jobs.manifests import Column, Frozen
from training.metrics.score import Score

SCORES, ITEMS = "scores.json", "items.parquet"
SCHEMA = pa.schema(
    [
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("prediction", pa.string()),
        pa.field("gold", pa.string(), nullable=False),
        pa.field("right", pa.bool_()),
        pa.field("value", pa.float64()),
        pa.field("log_likelihoods", pa.list_(pa.float64()), nullable=False),
        pa.field("nats", pa.float64()),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("finite", pa.bool_(), nullable=False),
        pa.field("tied", pa.bool_(), nullable=False),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
        pa.field("contaminated", pa.bool_()),
        pa.field("slices", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
COLUMNS = (
    *(Column(name=name, type="string") for name in ("benchmark", "id")),
    Column(name="line", type="bigint"),
    *(Column(name=name, type="string") for name in ("prediction", "gold")),
    Column(name="right", type="boolean"),
    Column(name="value", type="double"),
    Column(name="log_likelihoods", type="array<double>"),
    Column(name="nats", type="double"),
    Column(name="num_tokens", type="bigint"),
    *(Column(name=name, type="boolean") for name in ("finite", "tied")),
    Column(name="flags", type="array<string>"),
    Column(name="contaminated", type="boolean"),
    Column(name="slices", type="map<string,string>"),
)


class OverlapResult(Frozen):
    """num_judged: items of `overlap_tokens` or more. share: of them, contaminated ones. clean, contaminated: the main metric of
    those that are not, and of those that are; None where there is none."""

    overlap_tokens: int
    num_judged: int
    num_contaminated: int
    share: Score
    clean: Score | None = None
    contaminated: Score | None = None


class BenchmarkResult(Frozen):
    """counts: items with each flag, ties, and those without a finite answer. slices: name -> value -> the main metric."""

    kind: str
    version: str
    main: str
    higher_is_better: bool
    scores: dict[str, Score]
    slices: dict[str, dict[str, Score]] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    contamination: OverlapResult | None = None


def write_results(results: Mapping[str, BenchmarkResult], path: Path) -> None:
    told = {name: result.model_dump(mode="json") for name, result in results.items()}
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def read_results(path: Path) -> dict[str, BenchmarkResult]:
    return {name: BenchmarkResult.model_validate(told) for name, told in json.loads(path.read_text()).items()}


def main_values(path: Path) -> dict[str, float]:
    """benchmark/metric -> value, of the main metric of each benchmark where it is defined."""
    found = {name: result.scores[result.main] for name, result in read_results(path).items()}
    return {f"{name}/{score.name}": score.value for name, score in found.items() if math.isfinite(score.value)}


def write_items(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], SCHEMA), path, compression="zstd")
