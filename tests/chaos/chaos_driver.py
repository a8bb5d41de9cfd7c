"""Runs a tiny night step by step with the real engine and real child processes, and kills things on the way.

    python tests/chaos/chaos_driver.py HOME NIGHT TEXTS none|children|self:<step>

Measurements, and the choice and the report that show them, differ from run to run and are left out of the digests.
children: in each step, the process that works on it is killed with SIGKILL once, in the middle; the step is retried as
Prefect would. self:<step>: this very process kills itself while that step works. Prints the digests of all outputs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from flows.nightly import nightly
from flows.specs import load_spec
from spark_jobs.errors import JobCrashed
from spark_jobs.manifests import Handle
from tasks.engine import Engine, StepResult, engine_in_use
from tasks.machine import set_environment
from tasks.servers import client_environment
from tasks.steps import Step
from tasks.workspace import Workspace, home

PRESET = Path(__file__).parent.parent / "fixtures" / "tiny.yaml"
TIMED = ("choose", "report-evaluation")  # show measurements
MIDDLE_S = {"spark": 0.25, "torch": 0.6, "inline": 0.05}


class Killer:
    """An observer that kills during steps. `killed` holds the steps in which something died."""

    def __init__(self, engine_of: Callable[[], Engine], mode: str) -> None:
        self.engine_of, self.mode = engine_of, mode
        self.killed: list[str] = []

    def step_started(self, step: Step[Any], why: str) -> None:
        if self.mode == f"self:{step.name}" and step.name != "train":
            threading.Timer(MIDDLE_S[step.app], os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif self.mode == "children" and step.name not in self.killed and step.app != "inline" and step.name != "train":
            self.killed.append(step.name)
            threading.Timer(MIDDLE_S[step.app], self._kill_worker, (step,)).start()

    def step_event(self, step: Step[Any], event: dict[str, Any]) -> None:
        if step.name != "train" or event.get("step") != 5:
            return
        if self.mode == "self:train":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "children" and "train" not in self.killed:
            self.killed.append("train")
            self._kill_worker(step)

    def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None: ...

    def _kill_worker(self, step: Step[Any]) -> None:
        """Spark: the application. torch: the youngest descendant, which is a rank while training."""
        family = self.engine_of().applications["spark" if step.app == "spark" else "torch"].family()
        victim = family[0] if step.app == "spark" else max(family, key=lambda p: (p.create_time(), p.pid))
        with suppress(psutil.NoSuchProcess):
            victim.kill()


def run_with_retries(step: Step[Any], body: Callable[[], StepResult]) -> StepResult:
    for _ in range(2):
        try:
            return body()
        except JobCrashed:
            time.sleep(0.1)
    return body()


def main() -> None:
    folder, night, texts, mode = sys.argv[1:5]
    os.environ["NIGHTMILL_HOME"] = folder
    set_environment()
    os.environ.update(client_environment(home()))
    spec = load_spec(str(PRESET), [f"ingest.sources.0.path={texts}"])
    workspace = Workspace.of(spec.name)
    killer = Killer(lambda: engine, mode)
    engine = Engine(workspace, night, runner=run_with_retries, observers=(killer,))
    with engine_in_use(engine):
        if mode != "none":
            engine.applications["torch"].start()
        nightly.fn(spec, night)
    found = workspace.record(night).outputs.items()
    outputs = {step: entry.digest for step, entry in found if step not in TIMED and not step.startswith("measure-")}
    print(json.dumps({"outputs": outputs, "killed": killer.killed}))  # noqa: T201


if __name__ == "__main__":
    main()
