"""The matrix of `make chaos` over a night of two small steps: one in a worker process, one in the flow process itself.

    python tests/chaos/toy_matrix.py HOME

Engine, locks, publishing, child processes, kills and comparison are the real ones. Ends with the JSON line of `make chaos`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HOME = Path(sys.argv[1])
os.environ["NIGHTMILL_HOME"] = str(HOME)

from benchmarks import chaos, chaos_flow
from spark_jobs.manifests import Documents
from spark_jobs.requests import Outcome
from spark_jobs.specs import CleanSpec
from tasks import application
from tasks.engine import current_engine
from tasks.steps import Step
from tasks.zombies import sweep_before_night


def work_here(attempt: Path) -> Outcome:
    (attempt / "data").mkdir()
    for number in range(2):
        with (attempt / "data" / f"part-{number}.txt").open("w") as stream:
            stream.write(f"text {number}\n")
    return Outcome(num_rows=2, format="text", counts={"in": 2, "out": 2})


def two_steps(_spec: Any, night: str) -> None:
    sweep_before_night(HOME)
    engine, common = (
        current_engine(),
        {"handle": Documents, "entry": "spark_jobs.specs", "spec": CleanSpec(), "night": night},
    )
    first: Documents = engine.run(Step(name="in-worker", app="torch", job="toy", **common))
    engine.run(Step(name="in-flow", work=work_here, inputs={"raw": first}, **common))


def main() -> None:
    application.MODULES["torch"] = "toy_worker"
    chaos_flow.nightly = SimpleNamespace(fn=two_steps)  # type: ignore[assignment]
    (HOME / "servers").mkdir(parents=True)
    matrix = chaos.Matrix(HOME, SimpleNamespace(name="toy"))
    matrix.unbroken()
    for kill, app in chaos.plan_kills(matrix.steps, thorough=True, only=set()):
        if kill.victim != "disk":
            matrix.try_kill(kill, "torch" if app == "inline" else app)
    matrix.close()
    found = {"kills": matrix.kills, "wrong": matrix.wrong, "leftovers": matrix.leftovers, "late": dict(matrix.late)}
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
