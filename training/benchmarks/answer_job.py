"""The answer-benchmark job: what a model answers to one shard of a benchmark's items. Input: model.

Nothing is judged here: metrics, filters and slices can change without a model being asked again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from spark_jobs.manifests import Column
from spark_jobs.requests import Outcome, Request, send
from training.benchmark_spec import AnswerJobSpec
from training.benchmarks.asking import requests_of
from training.benchmarks.cache import AnswerCache, model_key
from training.benchmarks.items import load_benchmark
from training.benchmarks.requests import Answer, Likelihood, Written
from training.benchmarks.scorer import Scorer, scorer_of
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.model_folder import load_model
from training.processes import num_threads

ANSWERS = "answers.parquet"
CACHE = "answers"  # in the workspace; see cache.py
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("request", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("log_likelihood", pa.float64()),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("greedy", pa.bool_()),
        pa.field("text", pa.string()),
        pa.field("finish", pa.string()),
        pa.field("flags", pa.list_(pa.string()), nullable=False),
    ]
)
COLUMNS = (
    Column(name="id", type="string"), Column(name="request", type="bigint"), Column(name="kind", type="string"),
    Column(name="log_likelihood", type="double"), Column(name="num_tokens", type="bigint"),
    Column(name="greedy", type="boolean"), Column(name="text", type="string"), Column(name="finish", type="string"),
    Column(name="flags", type="array<string>"),
)  # fmt: skip


def run(request: Request) -> Outcome:
    """Raises: RequestError, DataError if the task or an item is wrong, or the model does not write left to right."""
    spec = AnswerJobSpec.model_validate(request.spec)
    model = ModelFolder.load(input_uri(request, "model"))
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    if spec.benchmark.harness is not None:
        from training.benchmarks.harness_job import answer_harness  # lm-eval is an extra, and takes seconds to import

        return answer_harness(spec.benchmark, model, Path(request.out))
    benchmark = load_benchmark(spec.benchmark)  # before seconds are spent on a model
    items = benchmark.shard(spec.shard)
    asked = [requests_of(benchmark.task, item) for item in items]
    scorer, cache = scorer_and_cache(model, spec)
    answers = cache.answer([one for requests in asked for one in requests], scorer.answer)
    places = [(item.id, i) for item, requests in zip(items, asked, strict=True) for i in range(len(requests))]
    rows = [_told(name, place, answer) for (name, place), answer in zip(places, answers, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), data / ANSWERS, compression="zstd")
    send("event", {"job": "answer-benchmark", "asked": cache.asked, "found": cache.found})
    fields = {"model": model.address, "benchmark": spec.benchmark.name, "num_items": len(items)}
    return Outcome(num_rows=len(rows), format="parquet", columns=COLUMNS, fields=fields)


def scorer_and_cache(model: ModelFolder, spec: AnswerJobSpec) -> tuple[Scorer, AnswerCache]:
    torch.set_num_threads(num_threads())
    network = load_model(model)
    folder = Path(model.folder())
    scorer = scorer_of(network, folder, spec.benchmark.beginning, spec.benchmark.batch_tokens)
    dtype = str(next(network.parameters()).dtype)
    return scorer, AnswerCache(model.workspace / CACHE, model_key(folder, spec.benchmark.beginning, dtype))


def _told(name: str, place: int, answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": name, "request": place, "kind": type(answer).__name__, "num_tokens": answer.num_tokens,
        "flags": list(answer.flags),
    }  # fmt: skip
    if isinstance(answer, Likelihood):
        return row | {"log_likelihood": answer.log_likelihood, "greedy": answer.greedy}
    return row | {"text": answer.text, "finish": answer.finish}


def read_answers(paths: Sequence[Path]) -> dict[str, list[Answer]]:
    """Answers of each item by its id, in the order asked; of all shards."""
    found: dict[str, list[Answer]] = {}
    for path in paths:
        for row in pq.read_table(path, use_threads=False).to_pylist():
            found.setdefault(row["id"], []).append(_answer(row))
    return found


def _answer(row: Mapping[str, Any]) -> Answer:
    flags = tuple(row["flags"])
    if row["kind"] == "Written":
        return Written(row["text"], row["num_tokens"], row["finish"], flags)
    value = math.nan if row["log_likelihood"] is None else row["log_likelihood"]
    return Likelihood(value, row["num_tokens"], row["greedy"], flags)
