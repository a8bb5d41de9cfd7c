"""Our scorer beside lm-evaluation-harness's own model of transformers: the same model, the same items, every likelihood.

    python -m benchmarks.harness_parity --model ../shared/data/models/stories260k [--data ../shared/data/eval] [--items 200]

PIQA, ARC challenge, LAMBADA from local files. Three ways to the same numbers: (a) lm-eval's HFLM under lm-eval; (b) our scorer
under lm-eval, as `nightmill evaluate` runs harness tasks; (c) our own task folders of examples/benchmarks. Likelihoods are
compared request by request. One is explained where our scorer says why it asked something else: a token spans context and
continuation (`boundary`), or the context was cut from the left (`truncated`: lm-eval then drops the beginning token too).
Where none of these is so, a difference above `--tolerance` nats is unexplained, and the script ends with code 1.

Ends with one JSON line: {"model", "items", "tasks": {task: {metrics, largest and unexplained differences}}, "unexplained"}.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from training.benchmark_spec import BenchmarkSpec, HarnessSpec
from training.benchmarks.asking import judge, requests_of
from training.benchmarks.cache import AnswerCache, model_key
from training.benchmarks.encoding import Encoder
from training.benchmarks.harness_job import run_tasks
from training.benchmarks.harness_model import ScoredModel
from training.benchmarks.items import load_benchmark
from training.benchmarks.requests import Continuation, Likelihood, Request
from training.benchmarks.scorer import scorer_of
from training.benchmarks.scoring import scores_of
from training.metrics.bootstrap import Bootstrap
from training.model_folder import load_folder

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "eval"
METRICS = {  # ours -> lm-eval's, of each task
    "piqa": {"accuracy": "acc", "accuracy_norm": "acc_norm"},
    "arc_challenge": {"accuracy": "acc", "accuracy_norm": "acc_norm"},
    "lambada": {"accuracy": "acc", "item_perplexity": "perplexity"},
}
MEAN = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
COMMON: dict[str, Any] = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}
TASKS: dict[str, dict[str, Any]] = {  # as lm-eval 0.4.13 has them, with data of this machine
    "piqa": {
        "output_type": "multiple_choice", "doc_to_text": "Question: {{goal}}\nAnswer:", "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}", "metric_list": MEAN,
    },
    "arc_challenge": {
        "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}", "doc_to_choice": "{{choices.text}}", "metric_list": MEAN,
    },
    "lambada": {
        "output_type": "loglikelihood", "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}, MEAN[0],
        ],
    },
}  # fmt: skip
FILES = {"piqa": "piqa/dev.jsonl", "arc_challenge": "arc_challenge.test.jsonl", "lambada": "lambada_test.jsonl"}
LABELS = "piqa/dev-labels.lst"
EXAMPLES = ROOT / "examples" / "benchmarks"


@dataclass(frozen=True)
class Compared:
    """One likelihood by both. flags: why ours was asked another way."""

    ours: float
    theirs: float
    flags: tuple[str, ...]

    @property
    def difference(self) -> float:
        return abs(self.ours - self.theirs)


def write_tasks(folder: Path, data: Path, encoder: Encoder, num_items: int) -> dict[str, int]:
    """The first `num_items` of each task that the model can be asked, and the tasks' YAML. A choice longer than the model sees is
    an item that lm-eval stops at, with an AssertionError: how many were left out is returned, by task.

    PIQA's labels are joined to its questions for lm-eval, as its data set on the hub has them.
    """
    (folder / "piqa").mkdir()
    left_out: dict[str, int] = {}
    for task in TASKS:
        benchmark = load_benchmark(BenchmarkSpec(name=task, folder=str(EXAMPLES / task), data=str(data)))
        fits = [all(map(partial(_fits, encoder), requests_of(benchmark.task, item))) for item in benchmark.items]
        kept = [item.line for item, known in zip(benchmark.items, fits, strict=True) if known][:num_items]
        left_out[task] = fits[: kept[-1]].count(False)
        for name in (FILES[task], *([LABELS] if task == "piqa" else [])):
            lines = (data / name).read_text().split("\n")
            (folder / name).write_text("".join(f"{lines[number - 1]}\n" for number in kept))
    labels = (folder / LABELS).read_text().split()
    lines = (folder / FILES["piqa"]).read_text().splitlines()
    joined = [json.dumps(json.loads(line) | {"label": int(label)}) for line, label in zip(lines, labels, strict=True)]
    (folder / "piqa.jsonl").write_text("\n".join(joined) + "\n")
    for name, told in TASKS.items():
        file = folder / ("piqa.jsonl" if name == "piqa" else FILES[name])
        whole = COMMON | told | {"task": name, "dataset_kwargs": {"data_files": {"test": str(file)}}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return left_out


def _fits(encoder: Encoder, request: Request) -> bool:
    assert isinstance(request, Continuation)
    return "too_long" not in encoder.pair(request.context, request.continuation).flags


def asked_and_answered(told: Mapping[str, Any], task: str) -> dict[tuple[str, str], float]:
    """(context, continuation) -> log-likelihood, of what lm-eval asked."""
    found: dict[tuple[str, str], float] = {}
    for sample in told["samples"][task]:
        for arguments, answers in zip(sample["arguments"], sample["resps"], strict=True):
            found[arguments[0], arguments[1]] = float(answers[0][0])
    return found


def compared(ours: Mapping[tuple[str, str], Likelihood], theirs: Mapping[tuple[str, str], float]) -> list[Compared]:
    assert ours.keys() == theirs.keys(), "the two were not asked the same"
    return [Compared(ours[key].log_likelihood, theirs[key], ours[key].flags) for key in theirs]


def summary(pairs: Sequence[Compared], tolerance: float) -> dict[str, Any]:
    plain = [pair.difference for pair in pairs if not pair.flags]
    flagged = {flag: [p.difference for p in pairs if flag in p.flags] for flag in ("boundary", "truncated")}
    return {
        "likelihoods": len(pairs),
        "largest_difference": max(plain, default=0.0),
        "unexplained": sum(not difference <= tolerance for difference in plain),
        "explained": {f: {"n": len(d), "largest_difference": max(d)} for f, d in flagged.items() if d},
    }


def compare(folder: Path, data: Path, num_items: int, tolerance: float, batch_size: int) -> dict[str, Any]:
    """Everything that is printed, for one model folder."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    network = load_folder(folder)
    theirs_model = HFLM(
        pretrained=network, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=batch_size, device="cpu"
    )
    scorer = scorer_of(network, folder, "tokenizer", 4096)
    tasks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as told:
        place = Path(told)
        left_out = write_tasks(place, data, scorer.encoder, num_items)
        cache = AnswerCache(place / "cache", model_key(folder, "tokenizer", str(network.dtype)))
        for task in TASKS:
            harness = BenchmarkSpec(
                name=task, harness=HarnessSpec(tasks=(task,), include_path=str(place)), beginning="tokenizer",
            )  # fmt: skip
            started = time.monotonic()
            theirs = run_tasks(harness, theirs_model)
            middle = time.monotonic()
            adapted = run_tasks(harness, ScoredModel(scorer, cache))
            seconds = {"lm_eval_s": round(middle - started, 1), "ours_s": round(time.monotonic() - middle, 1)}
            asked = asked_and_answered(theirs, task)
            requests = [Continuation(*key) for key in asked]
            answers = dict(zip(asked, cache.answer(requests, scorer.answer), strict=True))
            pairs = compared({k: a for k, a in answers.items() if isinstance(a, Likelihood)}, asked)
            assert set(asked_and_answered(adapted, task).values()) == {a.log_likelihood for a in answers.values()}  # type: ignore[union-attr]
            own = own_folder(task, place, cache, scorer, set(asked))
            metrics = {
                ours: {"lm_eval": _of(theirs, task, name), "adapter": _of(adapted, task, name), "own": own[ours]}
                for ours, name in METRICS[task].items()
            }
            num_asked = len(theirs["samples"][task])
            tasks[task] = (
                {"items": num_asked, "left_out": left_out[task], "metrics": metrics}
                | summary(pairs, tolerance)
                | seconds
            )
            print(json.dumps({task: tasks[task]}), flush=True)
    return {
        "model": folder.name, "items": num_items, "tolerance": tolerance, "tasks": tasks,
        "unexplained": sum(task["unexplained"] for task in tasks.values()),
    }  # fmt: skip


def own_folder(task: str, data: Path, cache: AnswerCache, scorer: Any, asked: set[tuple[str, str]]) -> dict[str, float]:
    """The same by examples/benchmarks, which must ask exactly what lm-eval asked."""
    benchmark = load_benchmark(BenchmarkSpec(name=task, folder=str(EXAMPLES / task), data=str(data)))
    requests = [requests_of(benchmark.task, item) for item in benchmark.items]
    told = {(r.context, r.continuation) for own in requests for r in own if isinstance(r, Continuation)}
    assert told == asked, f"{task}: prompts differ from lm-eval's, for example {sorted(told ^ asked)[:2]}"
    answers = iter(cache.answer([one for own in requests for one in own], scorer.answer))
    rows = [
        judge(benchmark.task, item, [next(answers) for _ in own])
        for item, own in zip(benchmark.items, requests, strict=True)
    ]
    scores = scores_of(benchmark.task, rows, Bootstrap(replicates=1))
    return {name: scores[name].value for name in METRICS[task]}


def _of(told: Mapping[str, Any], task: str, metric: str) -> float:
    return float(told["results"][task][f"{metric},none"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DATA.parent / "models" / "stories260k")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--items", type=int, default=200, help="of each task, the first ones")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="nats of a likelihood; single precision, other padding"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="of lm-eval's model")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.disable(logging.WARNING)
    result = compare(arguments.model, arguments.data, arguments.items, arguments.tolerance, arguments.batch_size)
    print(json.dumps(result))
    return 1 if result["unexplained"] else 0


if __name__ == "__main__":
    sys.exit(main())
