"""`nightmill tune` as a person runs it: twelve trials on Dask, a worker or the flow killed, the best trial trained alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from spark_jobs.manifests import MANIFEST
from tasks.search_steps import files_sha256
from tasks.servers import tracking_uri
from training.manifests import ModelFolder, TrialResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NIGHT = "2026-11-25"
NAME = "tiny-search"
NUM_TRIALS = 12
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_base(folder: Path) -> None:
    """An untrained BERT, 2 layers 32 wide, with a vocabulary of sixty words."""
    words = SPECIAL + [f"w{number}" for number in range(60)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)


def write_rows(path: Path, count: int = 300) -> None:
    """Texts of ten words, of which three in ten tell the class."""
    draw = random.Random(0)
    own = {"calm": range(20), "storm": range(20, 40)}
    with path.open("w") as stream:
        for _ in range(count):
            label = draw.choice(["calm", "storm"])
            words = [draw.choice(own[label]) if draw.random() < 0.3 else draw.randrange(40, 60) for _ in range(10)]
            stream.write(json.dumps({"text": " ".join(f"w{word}" for word in words), "label": label}) + "\n")


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_base(folder / "base")
    write_rows(folder / "rows.jsonl")
    spec = {
        "name": NAME,
        "label": {
            "task": "classification", "validation_share": 0.2, "test_share": 0.2,
            "sources": [{"kind": "jsonl", "path": str(folder / "rows.jsonl"), "columns": {"text": "text", "labels": "label"}}],
        },
        "base": {"path": str(folder / "base")},
        "finetune": {"task": {"max_length": 16}, "ranks": 1, "epochs": 2, "sequences_per_step": 16},
        "search": {
            "num_trials": NUM_TRIALS, "max_parallel": 2, "method": "bayesian",
            "space": [
                {"path": "finetune.optimizer.learning_rate", "low": 1e-3, "high": 1e-1, "log": True},
                {"path": "finetune.method.kind", "choices": ["full", "lora"]},
            ],
        },
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


class Search:
    """One home in which `nightmill tune` runs as a process of its own."""

    def __init__(self, home: Path, preset: Path) -> None:
        self.home, self.preset = home, preset
        self.started: list[subprocess.Popen[str]] = []
        self.root = home / "workspaces" / NAME

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "tune", str(self.preset), "--night", NIGHT, "--json", *arguments],
            env=environment | {"NIGHTMILL_HOME": str(self.home), "NIGHTMILL_DASK_WORKERS": "2"},
            stdout=subprocess.PIPE, stderr=(self.home / "stderr.log").open("a"), text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def report_of(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """The last line that a run which goes well prints."""
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, (self.home / "stderr.log").read_text()[-3000:]
        report: dict[str, Any] = json.loads(out.splitlines()[-1])
        return report

    def trials(self) -> dict[str, tuple[int, str]]:
        """Published trials: address -> (inode of the manifest, its text). An output made again has another inode."""
        found = self.root.glob(f"trials/*/{MANIFEST}")
        return {path.parent.name: (path.stat().st_ino, path.read_text()) for path in found}

    def give_labelled_set_to(self, other: Search) -> None:
        """Spark's part is the same in every home here."""
        for folder in ("labelled", "models"):
            shutil.copytree(self.root / folder, other.root / folder)

    def leftovers(self) -> list[str]:
        """Processes, locks and attempts that nobody needs any more."""
        found = [str(path) for part in ("attempts", "locks") for path in (self.root / part).glob("*")]
        return found + [f"{process.pid} {' '.join(process.cmdline()[:4])}" for process in self.processes()]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("NIGHTMILL_HOME") == str(self.home):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def wait_for(what: Callable[[], Any], timeout_s: float, process: subprocess.Popen[str] | None = None) -> Any:
    """The first true answer. Fails if none comes in time, or the process ends before."""
    until = time.monotonic() + timeout_s
    while not (answer := what()):
        assert time.monotonic() < until, "it did not happen in time"
        assert process is None or process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    return answer


def worker_in_a_trial(flow: psutil.Process) -> psutil.Process | None:
    """A Dask worker whose torch application has a job under way."""
    for worker in flow.children():
        try:
            if any("spawn_main" in word for word in worker.cmdline()) and len(worker.children(recursive=True)) >= 2:
                return worker
        except psutil.NoSuchProcess:
            continue
    return None


@pytest.fixture(scope="module")
def search_at(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Search]]:
    """Makes a home of its own for a search; what a failed test left running is killed at the end."""
    made: list[Search] = []

    def make(name: str) -> Search:
        made.append(Search(tmp_path_factory.mktemp(name), preset))
        return made[-1]

    yield make
    for process in (process for search in made for process in search.started):
        process.kill()


@pytest.fixture(scope="module")
def after_worker_death(search_at: Callable[[str], Search]) -> tuple[Search, dict[str, Any], Any, Any]:
    """A search in which a Dask worker is killed in the middle of a trial; (search, report, trials then, trials after)."""
    search = search_at("worker-home")
    process = search.start()
    wait_for(lambda: len(search.trials()) >= 4, 500, process)
    worker = wait_for(lambda: worker_in_a_trial(psutil.Process(process.pid)), 60, process)
    before = search.trials()
    worker.kill()
    report = search.report_of(process)
    return search, report, before, search.trials()


def test_search_survives_the_death_of_a_worker_and_runs_no_finished_trial_again(after_worker_death):
    search, report, before, after = after_worker_death
    assert report["status"] == "done"
    assert [trial["number"] for trial in report["trials"]] == list(range(NUM_TRIALS))
    assert len(before) < len(after)
    assert before.items() <= after.items()
    ran = [step["output"] for step in report["steps"] if step["step"].startswith("trial ")]
    assert sorted(ran) == sorted(f"trials/{name}" for name in after)  # each once
    assert search.leftovers() == []


def test_best_trial_trained_alone_is_scored_on_test_and_has_the_same_bytes(after_worker_death):
    _, report, _, _ = after_worker_death
    assert report["reproduced"] is True
    assert report["steps"][-1]["step"] == "score-task"
    assert report["scores"]["accuracy"]["n"] == report["steps"][-1]["rows"] > 20
    assert yaml.safe_load((Path(report["search"]) / "best.yaml").read_text())["score"]["split"] == "test"


def test_trials_are_runs_inside_the_run_of_the_search(after_worker_death):
    from mlflow import MlflowClient

    search, report, _, _ = after_worker_death
    client = MlflowClient(tracking_uri(search.home))
    (experiment,) = (e for e in client.search_experiments() if e.name == NAME)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs["search"]
    for trial in report["trials"]:
        run = runs[f"trial {trial['number']}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["nightmill.state"] == trial["state"]
        assert run.data.metrics["score"] == pytest.approx(trial["stages"][-1])
        assert run.data.params["finetune.method.kind"] == trial["values"]["finetune.method.kind"]
    assert parent.data.tags["mlflow.parentRunId"] == runs[NIGHT].info.run_id
    pictures = {file.path for file in client.list_artifacts(parent.info.run_id, "search")}
    assert {"search/history.svg", "search/importance.svg"} <= pictures


@pytest.mark.long
def test_search_whose_flow_was_killed_goes_on_to_the_same_trials_and_best(after_worker_death, search_at):
    reference, told, _, trials = after_worker_death
    search = search_at("flow-home")
    reference.give_labelled_set_to(search)
    process = search.start()
    wait_for(lambda: len(search.trials()) >= 4, 500, process)
    wait_for(lambda: worker_in_a_trial(psutil.Process(process.pid)), 60, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = search.trials()
    wait_for(lambda: not search.processes(), 30)  # workers, their torch, and the Prefect server die with the flow
    report = search.report_of(search.start())
    after = search.trials()
    assert before.items() <= after.items()
    assert {name: text for name, (_, text) in after.items()} == {name: text for name, (_, text) in trials.items()}
    ran = {step["output"] for step in report["steps"] if step["step"].startswith("trial ")}
    assert ran == {f"trials/{name}" for name in after.keys() - before.keys()}
    assert report["trials"] == told["trials"]
    assert report["best"] == told["best"]
    assert search.leftovers() == []


def test_trial_run_alone_in_another_home_gives_the_same_model(after_worker_death, search_at):
    reference, told, _, _ = after_worker_death
    search = search_at("alone-home")
    reference.give_labelled_set_to(search)
    for model in search.root.glob("models/export-task-*"):
        shutil.rmtree(model)
    shutil.copytree(reference.root / "trials", search.root / "trials")
    number = told["best"]["number"]
    report = search.report_of(search.start("--trial", str(number)))
    assert {step["step"]: step["state"] for step in report["steps"]}["finetune"] == "ran"
    (result,) = (
        TrialResult.load(reference.root / step["output"])
        for step in told["steps"] if step["step"] == f"trial {number}"
    )  # fmt: skip
    assert files_sha256(ModelFolder.load(search.root / report["model"])) == result.model_sha256
    assert report["scores"] == told["scores"]
