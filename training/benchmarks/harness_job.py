"""Tasks of lm-evaluation-harness asked through our scorer: its per-item records become our items and scores. Offline.

A metric that the harness averages over items is averaged here, from the items, so that it has an interval and counts what is
not finite as wrong (the harness takes the first choice of a model that answers NaN). Any other is the harness's own number,
without an interval.
"""

from __future__ import annotations

import importlib
import math
import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spark_jobs.errors import DataError, RequestError
from spark_jobs.requests import Outcome
from training.benchmark_spec import AnswerJobSpec, BenchmarkSpec
from training.benchmarks.answer_job import scorer_and_cache
from training.benchmarks.harness_model import NOT_FINITE, ScoredModel
from training.benchmarks.results import COLUMNS, ITEMS, SCORES, BenchmarkResult, write_items, write_results
from training.manifests import ModelFolder
from training.metrics.bootstrap import Bootstrap, mean_scores
from training.metrics.proportion import proportion
from training.metrics.score import Score

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def answer_harness(spec: BenchmarkSpec, model: ModelFolder, out: Path) -> Outcome:
    """Items and scores of every task, each called NAME/TASK."""
    scorer, cache = scorer_and_cache(model, AnswerJobSpec(benchmark=spec))
    told = run_tasks(spec, ScoredModel(scorer, cache))
    items: list[dict[str, Any]] = []
    results: dict[str, BenchmarkResult] = {}
    for task, samples in sorted(told["samples"].items()):
        name = f"{spec.name}/{task}"
        own = [_item(name, sample) for sample in _one_filter(samples)]
        results[name] = _result(told, task, _one_filter(samples), own, Bootstrap(seed=spec.seed))
        items += own
    write_items(items, out / "data" / ITEMS)
    write_results(results, out / "data" / SCORES)
    fields = {"model": model.address, "benchmark": spec.name, "num_items": len(items)}
    return Outcome(num_rows=len(items), format="parquet", columns=COLUMNS, fields=fields)


def run_tasks(spec: BenchmarkSpec, model: Any) -> Any:
    """What lm-eval's simple_evaluate returns, with its samples. Its cache of data sets is gone afterwards.

    Raises: RequestError if it has no such task, or if a task's data is not on this machine.
    """
    assert spec.harness is not None
    os.environ.update(OFFLINE)
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    datasets = importlib.import_module("datasets")  # lm-eval's own
    state = random.getstate(), np.random.get_state()
    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = Path(cache)
        datasets.config.HF_DATASETS_OFFLINE = True
        datasets.disable_progress_bars()
        manager = TaskManager(include_path=spec.harness.include_path, include_defaults=False)
        unknown = [name for name in spec.harness.tasks if name not in manager.all_tasks]
        if unknown:
            raise RequestError(
                f"benchmark {spec.name}: {spec.harness.include_path} has no task {unknown[0]}; it has {', '.join(manager.all_tasks)}"
            )
        try:
            return simple_evaluate(
                model=model, tasks=list(spec.harness.tasks), num_fewshot=spec.num_fewshot, limit=spec.max_items or None,
                task_manager=manager, bootstrap_iters=0, log_samples=True, fewshot_random_seed=1234 + spec.seed,
            )  # fmt: skip
        except (FileNotFoundError, ConnectionError, datasets.exceptions.DatasetNotFoundError) as err:
            raise RequestError(
                f"benchmark {spec.name}: {str(err).splitlines()[0]}; data of harness tasks must be on this machine: in the task's "
                "YAML set dataset_path to json and dataset_kwargs.data_files to its files"
            ) from err
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])


def _one_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A task of several filters has a record an item and filter; those of its first filter stand for it."""
    first = samples[0]["filter"] if samples else ""
    return [sample for sample in samples if sample["filter"] == first]


def _item(name: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    likelihoods, texts = _answered(sample)
    finite = all(map(math.isfinite, likelihoods)) and NOT_FINITE not in texts
    values = _values(sample)
    main = next(iter(values), "")
    value = values[main] if main and finite else None
    right = None if value is not None and value not in (0.0, 1.0) else bool(value)
    return {
        "benchmark": name, "id": str(sample["doc_id"]), "line": int(sample["doc_id"]) + 1,
        "prediction": texts[0] if texts and finite else None, "gold": str(sample["target"]),
        "right": right if main.startswith(("acc", "exact")) else None, "value": value, "log_likelihoods": likelihoods,
        "nats": -likelihoods[0] if len(likelihoods) == 1 and finite else None, "num_tokens": 0, "finite": finite,
        "tied": False, "flags": [] if finite else ["non_finite"], "contaminated": None, "slices": [],
    }  # fmt: skip


def _answered(sample: Mapping[str, Any]) -> tuple[list[float], list[str]]:
    """Log-likelihoods and texts among what the harness noted of an item's requests."""
    likelihoods: list[float] = []
    texts: list[str] = []
    for answers in sample["resps"]:
        for answer in answers:
            value = answer[0] if isinstance(answer, list | tuple) else answer
            if isinstance(value, str) and isinstance(answer, str):
                texts.append(value)
            else:
                likelihoods.append(float(value))
    return likelihoods, texts


def _values(sample: Mapping[str, Any]) -> dict[str, float]:
    """The item's part of each metric, where that is a number."""
    found = {name: sample[name] for name in sample["metrics"]}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float | np.number)}


def _result(
    told: Mapping[str, Any], task: str, samples: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]],
    bootstrap: Bootstrap,
) -> BenchmarkResult:  # fmt: skip
    """Raises: DataError if the task has no metric that is a number."""
    aggregated = {name: value for name, value in told["results"][task].items() if _is_metric(name, value)}
    better = told["higher_is_better"].get(task, {})
    scores: dict[str, Score] = {}
    for name, value in aggregated.items():
        metric, chain = name.split(",", 1)
        if chain == samples[0]["filter"]:
            scores[metric] = _score(metric, float(value), samples, items, bootstrap)
    if not scores:
        raise DataError(f"harness task {task} has no metric that is a number: {', '.join(told['results'][task])}")
    main = next(iter(scores))
    return BenchmarkResult(
        kind="harness", version=str(told["versions"].get(task, "")), main=main,
        higher_is_better=bool(better.get(main, True)), scores=scores,
        counts={"not_finite": sum(not item["finite"] for item in items)},
    )  # fmt: skip


def _is_metric(name: str, value: Any) -> bool:
    return "," in name and "_stderr" not in name and isinstance(value, int | float | np.number)


def _score(
    metric: str, theirs: float, samples: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]],
    bootstrap: Bootstrap,
) -> Score:  # fmt: skip
    """From the items where the harness's number is their mean; else its own number, undefined if an answer is not finite."""
    from importlib.metadata import version

    values = [_values(sample).get(metric, math.nan) for sample in samples]
    finite = [bool(item["finite"]) for item in items]
    invalid, told = finite.count(False), f"lm-eval:{version('lm-eval')}"
    if values and math.isclose(float(np.mean(values)), theirs, rel_tol=1e-9, abs_tol=1e-12):
        counted = [value if known else 0.0 for value, known in zip(values, finite, strict=True)]
        if set(counted) <= {0.0, 1.0}:
            return proportion(metric, [value == 1.0 for value in counted], invalid, told)
        whole = np.array([value if known else math.nan for value, known in zip(values, finite, strict=True)])
        return mean_scores({metric: whole}, bootstrap, invalid, told)[metric]
    value = math.nan if invalid else theirs
    return Score(
        name=metric, value=value, n=len(values), n_invalid=invalid, low=math.nan, high=math.nan,
        signature=f"{told}|aggregation:own|interval:none",
    )  # fmt: skip
