"""Adversarial training against slips of the keyboard: sentence polarity, the packaged encoder, LoRA; with and without.

    python -m benchmarks.robustness [--rows 3000] [--test-rows 2000] [--epsilon 0.6]

The same rows, seed and steps each time; what differs is train.adversarial. Accuracy on test rows as they are and with a
tenth and a fifth of their letters disturbed, and the paired difference to training without, with 95 % interval. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.finetune import Bench, output, settings_of
from spark_jobs.manifests import LabelledSet
from tasks.application import Application, AppName
from tasks.machine import set_environment
from training.manifests import TaskScorecard
from training.metrics.bootstrap import Bootstrap, Difference, mean_of_column, paired_difference, resample_sums
from training.metrics.proportion import proportion

SHARES = (0.0, 0.1, 0.2)
KINDS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "fgm": {"kind": "fgm"},
    "freelb": {"kind": "freelb", "num_steps": 2},
}
# Of --epsilon. FreeLB learns from moved sentences alone (FGM also from those as they are), which at the whole of it, in so
# few steps, it does not: accuracy stays that of chance.
SHARE_OF_EPSILON = {"fgm": 1.0, "freelb": 0.2}


def spec_of(folder: Path, asked: argparse.Namespace, adversarial: dict[str, Any], share: float) -> dict[str, Any]:
    settings = settings_of(folder)["classification"]
    finetune = settings["finetune"] | {"adversarial": adversarial, "epochs": asked.rows / 8500, "micro_batch": 16}
    score = {"max_rows": asked.test_rows, "noise_share": share}
    return settings | {"name": "robustness", "finetune": finetune, "score": score}


def right(bench: Bench, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, float]:
    """Whether each row, and each row disturbed, was told right; and examples a second of the training."""
    report, examples_per_s = bench.run(settings)
    labelled = output(report, "robustness", "label", LabelledSet)
    gold = {r["id"]: r["labels"][0] for path in labelled.paths() for r in pq.read_table(path).to_pylist()}
    card = output(report, "robustness", "score-task", TaskScorecard)
    found = []
    for part in ("data", "noisy"):
        rows = pq.read_table(Path(card.folder(part)) / "predictions.parquet").to_pylist()
        found.append(np.array([json.loads(r["prediction"])[0]["label"] == gold[r["id"]] for r in rows], float))
    return found[0], found[1], examples_per_s


def difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    sides = [resample_sums(side[:, None], Bootstrap()) for side in (ours, theirs)]
    return paired_difference(sides[0], sides[1], mean_of_column(0, len(ours)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000, help="examples trained on")
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument(
        "--epsilon", type=float, default=0.6, help="largest move of a sentence's embeddings; of FreeLB a fifth of it"
    )
    asked = parser.parse_args()
    began = time.monotonic()
    print(f"{datetime.now(UTC):%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores, epsilon {asked.epsilon:g}")
    folder = Path(tempfile.mkdtemp(prefix="nightmill-robustness-"))
    os.environ["NIGHTMILL_HOME"] = str(folder / "home")
    set_environment()
    applications: dict[AppName, Application] = {name: Application(name, folder / "logs") for name in ("spark", "torch")}
    bench, told = Bench(folder, applications), dict[tuple[str, float], np.ndarray]()
    lines: list[dict[str, Any]] = []
    print("| adversarial | noise | accuracy | against none | examples/s |\n|---|---|---|---|---|")
    try:
        for kind, chosen in KINDS.items():
            speeds = []
            largest = asked.epsilon * SHARE_OF_EPSILON.get(kind, 0.0)
            moved = {"epsilon": largest, "step_size": largest / 2} if largest else {}
            for share in SHARES[1:]:
                plain, noisy, speed = right(bench, spec_of(folder, asked, chosen | moved, share))
                told[kind, 0.0], told[kind, share] = plain, noisy
                speeds.append(speed)
            for share in SHARES:
                lines.append(line_of(told, kind, share, speeds[0]))
    finally:
        for application in applications.values():
            application.close()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s in all")
    print(json.dumps({"robustness": lines, "epsilon": asked.epsilon}))


def line_of(told: dict[tuple[str, float], np.ndarray], kind: str, share: float, speed: float) -> dict[str, Any]:
    """A line of the table, printed."""
    values = told[kind, share]
    score = proportion("accuracy", [bool(value) for value in values])
    line: dict[str, Any] = {"adversarial": kind, "noise": share, "accuracy": round(score.value, 4)}
    against = ""
    if kind != "none":
        found = difference(values, told["none", share])
        line |= {"gain": round(found.value, 4), "low": round(found.low, 4), "high": round(found.high, 4)}
        against = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    print(
        f"| {kind} | {share:g} | {score.value:.4f} [{score.low:.4f}, {score.high:.4f}] | {against} | {speed:.1f} |",
        flush=True,
    )
    return line


if __name__ == "__main__":
    main()
