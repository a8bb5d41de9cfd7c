"""The score-benchmarks job: answers of all benchmarks -> one table of items and one of scores. No model is asked.

Inputs: model; answers.NAME.SHARD of each; overlap, where a corpus was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from spark_jobs.errors import DataError, QualityError
from spark_jobs.requests import Outcome, Request, send
from training.benchmark_spec import BenchmarksJobSpec, BenchmarkSpec
from training.benchmarks.answer_job import ANSWERS, read_answers
from training.benchmarks.asking import Row, judge
from training.benchmarks.items import Benchmark, load_benchmark
from training.benchmarks.overlap_job import OVERLAPS
from training.benchmarks.requests import FLAGS
from training.benchmarks.results import (
    COLUMNS,
    ITEMS,
    SCORES,
    BenchmarkResult,
    OverlapResult,
    read_results,
    write_items,
    write_results,
)
from training.benchmarks.scoring import scores_of, value_of
from training.benchmarks.task_file import LESS_IS_BETTER, TaskFile
from training.inputs import input_uri
from training.manifests import BenchmarkAnswers, CorpusOverlap, ModelFolder
from training.metrics.bootstrap import Bootstrap
from training.metrics.proportion import proportion
from training.metrics.score import Score

LENGTHS = ((100, "0-99"), (300, "100-299"), (1000, "300-999"), (None, "1000-"))  # characters of a prompt or text


def run(request: Request) -> Outcome:
    """Raises: QualityError if more items than allowed have no finite answer."""
    spec = BenchmarksJobSpec.model_validate(request.spec)
    model = ModelFolder.load(input_uri(request, "model"))
    told = request.inputs.get("overlap")
    overlap = read_overlap(CorpusOverlap.load(told)) if told else {}
    results: dict[str, BenchmarkResult] = {}
    items: list[Mapping[str, Any]] = []
    for one in spec.benchmarks:
        answers = [BenchmarkAnswers.load(request.inputs[role]) for role in one.roles]
        if one.harness is not None:
            folder = Path(answers[0].folder())
            results |= read_results(folder / SCORES)
            items += pq.read_table(folder / ITEMS, use_threads=False).to_pylist()
        else:
            results[one.name], own = score_benchmark(load_benchmark(one), answers, overlap)
            items += own
    check_finite(spec, items)
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_items(items, data / ITEMS)
    write_results(results, data / SCORES)
    mains = {name: result.scores[result.main].value for name, result in results.items()}
    fields = {"model": model.address, "benchmarks": tuple(results)}
    send("event", {"job": "score-benchmarks"} | {n: v for n, v in mains.items() if math.isfinite(v)})
    return Outcome(num_rows=len(items), format="parquet", columns=COLUMNS, fields=fields)


def score_benchmark(
    benchmark: Benchmark, answers: Sequence[BenchmarkAnswers], overlap: Mapping[tuple[str, str], bool | None]
) -> tuple[BenchmarkResult, list[dict[str, Any]]]:
    """Rows in the order of the file, each item once, however many shards they came from.

    Raises: DataError if an item was not answered, or answered twice.
    """
    spec, task = benchmark.spec, benchmark.task
    found = read_answers([Path(handle.folder()) / ANSWERS for handle in answers])
    lost = [item.id for item in benchmark.items if item.id not in found]
    if lost or len(found) != len(benchmark.items):
        raise DataError(
            f"benchmark {spec.name}: {len(found)} answered items for {len(benchmark.items)}, "
            f"first without one: {lost[0] if lost else 'none'}; run its answers again"
        )
    rows = [judge(task, item, found[item.id]) for item in benchmark.items]
    contaminated = {row.item.id: overlap.get((spec.name, row.item.id)) for row in rows}
    result = result_of(task, rows, Bootstrap(seed=spec.seed))
    if spec.overlap_tokens and any((spec.name, row.item.id) in overlap for row in rows):
        result = result.model_copy(update={"contamination": _overlap(spec, task, rows, contaminated)})
    return result, [_item(spec.name, task, row, contaminated[row.item.id]) for row in rows]


def result_of(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> BenchmarkResult:
    main = task.chosen_metrics[0]
    counts: dict[str, int] = {flag: sum(flag in row.flags for row in rows) for flag in FLAGS}
    counts |= {"tied": sum(row.tied for row in rows), "not_finite": sum(not row.finite for row in rows)}
    return BenchmarkResult(
        kind=task.kind, version=str(task.version), main=main, higher_is_better=main not in LESS_IS_BETTER,
        scores=scores_of(task, rows, bootstrap), slices=slices_of(task, rows, bootstrap), counts=counts,
    )  # fmt: skip


def slices_of(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> dict[str, dict[str, Score]]:
    """The main metric of the items of each value of each slice field, and of each range of lengths; intervals of their own."""
    main = task.chosen_metrics[0]
    parts: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        for name, value in slice_values(row).items():
            parts.setdefault(name, {}).setdefault(value, []).append(row)
    return {
        name: {value: scores_of(task, part, bootstrap, (main,))[main] for value, part in sorted(values.items())}
        for name, values in sorted(parts.items())
    }


def slice_values(row: Row) -> dict[str, str]:
    length = len(row.item.prompt or row.item.target)
    return {"length": next(name for end, name in LENGTHS if end is None or length < end)} | dict(row.item.slices)


def _overlap(
    spec: BenchmarkSpec, task: TaskFile, rows: Sequence[Row], contaminated: Mapping[str, bool | None]
) -> OverlapResult:
    main, bootstrap = task.chosen_metrics[0], Bootstrap(seed=spec.seed)
    parts = {known: [row for row in rows if contaminated[row.item.id] is known] for known in (True, False)}
    scores = {k: scores_of(task, part, bootstrap, (main,))[main] if part else None for k, part in parts.items()}
    judged = [known for known in contaminated.values() if known is not None]
    share = proportion("contaminated", judged, 0, f"run:{spec.overlap_tokens} tokens")
    return OverlapResult(
        overlap_tokens=spec.overlap_tokens, num_judged=len(judged), num_contaminated=sum(judged), share=share,
        clean=scores[False], contaminated=scores[True],
    )  # fmt: skip


def _item(name: str, task: TaskFile, row: Row, contaminated: bool | None) -> dict[str, Any]:
    value = value_of(task, row)
    return {
        "benchmark": name, "id": row.item.id, "line": row.item.line, "prediction": row.prediction,
        "gold": row.item.solution, "right": _right(task, row, value),
        "value": value if math.isfinite(value) else None, "log_likelihoods": list(row.log_likelihoods),
        "nats": row.nats if math.isfinite(row.nats) else None, "num_tokens": row.num_tokens, "finite": row.finite,
        "tied": row.tied, "flags": list(row.flags), "contaminated": contaminated,
        "slices": list(slice_values(row).items()),
    }  # fmt: skip


def _right(task: TaskFile, row: Row, value: float) -> bool | None:
    """None where the main metric is not of right and wrong: then `value` is what two models are compared on."""
    main = task.chosen_metrics[0]
    if main == "exact_match":
        return value == 1.0
    return None if main in LESS_IS_BETTER else row.right


def read_overlap(handle: CorpusOverlap) -> dict[tuple[str, str], bool | None]:
    """Whether each item is contaminated, by benchmark and id; None for one too short to be judged."""
    table = pq.read_table(Path(handle.folder()) / OVERLAPS, use_threads=False).to_pylist()
    return {(row["benchmark"], row["id"]): bool(row["num_found"]) if row["num_runs"] else None for row in table}


def check_finite(spec: BenchmarksJobSpec, items: Sequence[Mapping[str, Any]]) -> None:
    """Raises: QualityError naming the benchmark, how many, and one of them."""
    for one in spec.benchmarks:
        names = {one.name} if one.harness is None else {i["benchmark"] for i in items if _of(one, i)}
        bad = [item["id"] for item in items if item["benchmark"] in names and not item["finite"]]
        if len(bad) > one.max_nonfinite:
            raise QualityError(
                f"benchmark {one.name}: {len(bad)} items have no finite answer, for example {bad[0]}; at most "
                f"{one.max_nonfinite} are allowed: mend the model, or raise max_nonfinite to count them as wrong"
            )


def _of(spec: BenchmarkSpec, item: Mapping[str, Any]) -> bool:
    return str(item["benchmark"]).startswith(f"{spec.name}/")
