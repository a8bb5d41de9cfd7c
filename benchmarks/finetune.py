"""Every task head on a real set: our score with its interval, a plain baseline, examples a second; and the Trainer beside us.

    python -m benchmarks.finetune [--tasks classification relation ...] [--peer-python PATH]

Each task goes the way of `nightmill finetune`: labelled set, base, training, export, score on the test split; without the
orchestrator. The peer is the Trainer of transformers with peft on the rows of sentence polarity, of which it sees as many
a step; started as one process and on two ranks, and the faster of both counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks import finetune_baselines as plain
from benchmarks.finetune_data import DATA, MADE, write_rows
from flows.finetune import FinetuneReport, finetune
from flows.finetune_specs import FinetuneRunSpec
from spark_jobs.manifests import Handle, LabelledSet
from tasks.application import Application, AppName
from tasks.engine import Engine, StepResult, engine_in_use
from tasks.machine import set_environment
from tasks.steps import Step
from tasks.workspace import Workspace
from training.manifests import ModelFolder, TaskCheckpoint

NIGHT = "2026-11-26"
SETTINGS = Path(__file__).parent / "finetune.yaml"
PEER_STEPS, PEER_WARM, PEER_TURNS = 24, 4, 2
BASELINES: dict[str, Callable[..., Any]] = {
    "classification": plain.logistic_regression,
    "multi_label": plain.logistic_regressions,
    "tagging": plain.usual_tag,
    "relation": plain.relation_regression,
    "question_answering": plain.likeliest_sentence,
    "translation": plain.copy,
    "summarization": plain.lead,
    "dialogue": plain.unigrams,
    "similarity": plain.cosine,
    "regression": plain.ridge,
    "preference": plain.longer,
    "ranking": plain.bm25,
}


class Speed:
    """Examples a second of the training steps under way, from the trainer's own events; the first steps warm up."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def step_started(self, step: Step[Any], why: str) -> None:
        self.steps = []

    def step_event(self, step: Step[Any], event: dict[str, Any]) -> None:
        if "sequences" in event:
            self.steps.append((event["sequences"], event["tokens"] / event["tokens_per_s"]))

    def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None:
        if step.name == "finetune" and result.state == "ran":
            counted = self.steps[PEER_WARM:] or self.steps
            self.examples_per_s = sum(n for n, _ in counted) / sum(s for _, s in counted)

    examples_per_s = float("nan")


@dataclass
class Bench:
    """One home for all tasks, and one Spark and one torch process."""

    folder: Path
    applications: dict[AppName, Application]

    def run(self, settings: dict[str, Any]) -> tuple[FinetuneReport, float]:
        spec = FinetuneRunSpec.model_validate(settings)
        speed = Speed()
        engine = Engine(Workspace.of(spec.name), NIGHT, observers=(speed,))
        engine.applications = self.applications
        engine.close = lambda: None  # type: ignore[method-assign]  # they serve the next task too
        with engine_in_use(engine):
            report: FinetuneReport = finetune.fn(spec, NIGHT)
        return report, speed.examples_per_s


def settings_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The file of settings with its places filled in: {data}, {made}."""
    text = SETTINGS.read_text().replace("{data}", str(DATA)).replace("{made}", str(folder))
    tasks: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return tasks


def smaller(settings: dict[str, Any]) -> dict[str, Any]:
    finetune_less = settings["finetune"] | {"epochs": min(0.05, settings["finetune"]["epochs"])}
    return settings | {"finetune": finetune_less, "score": {"max_rows": 40}}


def rows_of(labelled: LabelledSet) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of train and validation, and rows of test."""
    rows = [row for path in labelled.paths() for row in pq.read_table(path).to_pylist()]
    return [r for r in rows if r["split"] != "test"], [r for r in rows if r["split"] == "test"]


def output(report: FinetuneReport, name: str, step: str, kind: type[Any]) -> Any:
    address = next(line.output for line in report.steps if line.step == step)
    return kind.load(Workspace.of(name).at(address))


def baseline_of(task: str, report: FinetuneReport, name: str, max_rows: int | None) -> Any:
    """Scored on the rows we were scored on: those with the lowest ids. (A ranking's n counts queries, and it has all rows.)"""
    train, test = rows_of(output(report, name, "label", LabelledSet))
    test = sorted(test, key=lambda row: str(row["id"]))[:max_rows]
    if task != "dialogue":
        return BASELINES[task](train, test)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(report.folder)

    def answers(row: dict[str, Any]) -> list[int]:
        said = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        ids: list[int] = [i for text in said for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        return ids

    return plain.unigrams(train, test, answers)


def run_task(bench: Bench, task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    began = time.monotonic()
    report, examples_per_s = bench.run(settings)
    metric, score = next(iter(report.scores.items()))
    baseline = baseline_of(task, report, settings["name"], score.n if task != "ranking" else None)
    checkpoint = output(report, settings["name"], "finetune", TaskCheckpoint)
    line = {
        "task": task, "score": round(score.value, 4), "low": round(score.low, 4), "high": round(score.high, 4),
        "baseline": round(baseline.value, 4), "examples_per_s": round(examples_per_s, 1),
    }  # fmt: skip
    trained = checkpoint.num_trainable / checkpoint.num_parameters
    print(
        f"| {task} | {settings['name']} | {BASELINES[task].__name__.replace('_', ' ')} {baseline.value:.4f} | "
        f"{metric} **{score.value:.4f}** [{score.low:.4f}, {score.high:.4f}] | {score.n:,} | "
        f"{settings['finetune'].get('method', {}).get('kind', 'full')}, {trained:.2%} | {examples_per_s:,.1f} | "
        f"{time.monotonic() - began:.0f} |",
        flush=True,
    )
    return line


def vs_trainer(bench: Bench, settings: dict[str, Any], python: str) -> float:
    """Our examples a second over the peer's, median of the turns; each turn trains as many steps of both."""
    report, _ = bench.run(settings)
    name = settings["name"]
    base, labelled = output(report, name, "import-model", ModelFolder), output(report, name, "label", LabelledSet)
    spec = FinetuneRunSpec.model_validate(settings).finetune
    train, _ = rows_of(labelled)
    table = pa.table(
        {"text": [r["text"] for r in train], "label": [labelled.label_set.index(r["labels"][0]) for r in train]}
    )
    pq.write_table(table, bench.folder / "peer.parquet")
    told = {
        "folder": base.folder(), "rows": str(bench.folder / "peer.parquet"), "num_labels": len(labelled.label_set),
        "max_length": spec.task.max_length, "batch": spec.sequences_per_step, "steps": PEER_STEPS, "warm": PEER_WARM,
        "learning_rate": spec.optimizer.learning_rate, "rank": spec.method.rank, "alpha": spec.method.alpha,
        "targets": _adapted(report.folder),
    }  # fmt: skip
    (bench.folder / "peer.json").write_text(json.dumps(told))
    share = (PEER_STEPS + PEER_WARM) * spec.sequences_per_step / labelled.num_train
    ratios = []
    for turn in range(PEER_TURNS):
        ours = bench.run(settings | {"finetune": settings["finetune"] | {"epochs": share, "seed": turn + 1}})[1]
        theirs = [peer(bench.folder / "peer.json", python, ranks) for ranks in (1, 2)]
        print(
            f"turn {turn}: Nightmill {ours:.1f}, Trainer in one process {theirs[0]:.1f}, on two ranks {theirs[1]:.1f} examples/s"
        )
        ratios.append(ours / max(theirs))
    return round(sum(ratios) / len(ratios), 3)


def _adapted(folder: str) -> list[str]:
    from transformers import AutoModelForSequenceClassification

    from training.finetune.methods import linear_layers

    return linear_layers(AutoModelForSequenceClassification.from_pretrained(folder))


def peer(settings: Path, python: str, ranks: int) -> float:
    """Examples a second. Raises: CalledProcessError with its output on stderr."""
    module = ["-m", "benchmarks.finetune_peer", str(settings)]
    command = [python, *module]
    if ranks > 1:
        command = [python, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *module]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise RuntimeError(f"the peer ended with {asked.returncode}: {asked.stderr[-2000:]}")
    lines = [line for line in asked.stdout.splitlines() if line.startswith('{"examples_per_s"')]
    return float(json.loads(lines[-1])["examples_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(BASELINES), choices=list(BASELINES))
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps and 40 rows a task: that it runs, not how well"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has accelerate too; - for no peer")
    asked = parser.parse_args()
    began = time.monotonic()
    print(f"{datetime.now(UTC):%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores")
    folder = Path(tempfile.mkdtemp(prefix="nightmill-finetune-"))
    os.environ["NIGHTMILL_HOME"] = str(folder / "home")
    set_environment()
    for name, make in MADE.items():
        write_rows(make(), folder / f"{name}.jsonl")
    applications: dict[AppName, Application] = {name: Application(name, folder / "logs") for name in ("spark", "torch")}
    for application in applications.values():
        application.start()
    bench, settings = Bench(folder, applications), settings_of(folder)
    if asked.smoke:
        settings = {task: smaller(chosen) for task, chosen in settings.items()}
    print(
        "| task | set | baseline | ours, with 95 % interval | rows | trained | examples/s | seconds |\n|---|---|---|---|---|---|---|---|"
    )
    try:
        lines, ratio = [], None
        for task in asked.tasks:
            lines.append(run_task(bench, task, settings[task]))
            if task == "classification" and asked.peer_python != "-":
                ratio = vs_trainer(bench, settings[task], asked.peer_python)
    finally:
        for application in applications.values():
            application.close()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s in all")
    print(json.dumps({"tasks": lines, "vs_trainer_peft": ratio}))


if __name__ == "__main__":
    main()
