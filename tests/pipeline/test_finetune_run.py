"""`nightmill finetune` from files to scores: by the real engine, killed half way, and as a whole process with its orchestrator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from flows.finetune import FinetuneReport, finetune
from flows.finetune_specs import load_finetune_spec
from spark_jobs.errors import JobCrashed
from tasks.application import Application, AppName
from tasks.engine import Engine, engine_in_use
from tasks.workspace import Workspace

NIGHT = "2026-11-25"
WORDS = ["red", "blue", "cat", "dog", "sun", "moon", "runs", "sleeps", "sees", "the", "big", "small", "old", "new"]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run spec over a JSONL file of sentences whose class is their colour, and an untrained BERT."""
    folder = tmp_path_factory.mktemp("finetune")
    rows = [
        {"sentence": f"the {size} {colour} {noun} {end}", "colour": colour}
        for size in ("big", "small", "old", "new")
        for colour in ("red", "blue")
        for noun in ("cat", "dog", "sun", "moon")
        for end in ("runs", "sleeps", "sees")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl"), "columns": {"text": "sentence", "labels": "colour"}}
    tree: dict[str, Any] = {
        "name": "colours",
        "label": {
            "task": "classification", "sources": [source], "validation_share": 0.0, "test_share": 0.25,
            "leak": {"action": "report"},
        },
        "base": {"path": str(folder / "base")},
        "finetune": {
            "optimizer": {"learning_rate": 1e-2}, "epochs": 20, "sequences_per_step": 8, "micro_batch": 4, "dropout": 0.0,
            "checkpoint_every": 5, "schedule": {"kind": "constant", "warmup_share": 0.0},
        },
    }  # fmt: skip
    (folder / "colours.yaml").write_text(yaml.safe_dump(tree))
    return folder / "colours.yaml"


@pytest.fixture
def run(applications: dict[AppName, Application], preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the flow in a home of its own, without the orchestrator around it."""
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))

    def run_once(*settings: str) -> FinetuneReport:
        spec = load_finetune_spec(str(preset), list(settings))
        engine = Engine(Workspace.of(spec.name), NIGHT)
        engine.applications = applications
        engine.close = lambda: None  # type: ignore[method-assign]
        with engine_in_use(engine):
            report: FinetuneReport = finetune.fn(spec, NIGHT)
            return report

    return run_once


def states(report: FinetuneReport) -> dict[str, str]:
    return {step.step: step.state for step in report.steps}


def test_files_become_a_scored_model_and_nothing_is_done_twice(run: Any) -> None:
    report = run()
    assert list(states(report)) == ["label", "import-model", "finetune", "export-task", "score-task"]
    assert report.scores["accuracy"].value > 0.9
    assert (Path(report.folder) / "model.safetensors").is_file()
    assert set(states(run()).values()) == {"cached"}
    again = run("finetune.seed=1")
    noisy = run("score.noise_share=0.3")
    assert {name.removeprefix("noisy/") for name in noisy.scores} == set(report.scores)
    assert {name for name in noisy.scores if name.startswith("noisy/")} == {f"noisy/{name}" for name in report.scores}
    assert states(again) == {
        "label": "cached", "import-model": "cached", "finetune": "ran", "export-task": "ran", "score-task": "ran",
    }  # fmt: skip


@pytest.mark.long
def test_killed_training_goes_on_from_its_checkpoint_to_the_same_bytes(
    run: Any, applications: dict[AppName, Application], tmp_path: Path
) -> None:
    whole = run()
    home = tmp_path / "second"
    os.environ["NIGHTMILL_HOME"] = str(home)
    killed: list[int] = []

    def kill_a_rank() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            if list(home.glob("workspaces/colours/attempts/finetune-*/scratch/checkpoints/step-*")):
                family = [process.pid for process in applications["torch"].family()]
                killed.append(max(family))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    watcher = threading.Thread(target=kill_a_rank)
    watcher.start()
    with pytest.raises(JobCrashed):
        run("finetune.epochs=20")
    watcher.join()
    assert killed
    resumed = run("finetune.epochs=20")
    assert states(resumed)["finetune"] == "ran"
    first, second = (
        Workspace(tmp_path / name / "workspaces" / "colours").at(report.model) / "data" / "model.safetensors"
        for name, report in (("home", whole), ("second", resumed))
    )
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_command_prints_its_scores_as_one_line_and_leaves_no_process(preset: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "finetune", str(preset), "--night", NIGHT, "--json"],
        env=os.environ | {"NIGHTMILL_HOME": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    report = json.loads(out.splitlines()[-1])
    assert report["status"] == "done"
    assert report["scores"]["accuracy"]["value"] > 0.9
    assert "accuracy" in err
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_words(p))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), process.environ().get("NIGHTMILL_HOME", "")]
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []


def test_plan_says_what_waits_for_what(preset: Path, tmp_path: Path) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "flows", "finetune", str(preset), "--plan", "--json"],
        env=os.environ | {"NIGHTMILL_HOME": str(tmp_path)}, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    steps = {step["step"]: (step["state"], step["why"]) for step in json.loads(asked.stdout)["steps"]}
    assert steps["label"] == ("would run", "first run")
    assert steps["finetune"] == ("would run", "after import-model, label")
    assert not (tmp_path / "workspaces").exists()
