"""Kills a process at each moment of a step that works in it, runs the step again as a night does, and says what was there and what is.

    python tests/chaos/moments_driver.py FOLDER

Prints one JSON line: for each moment and signal how the process ended, the files that it left, and digest and files after the
second run. The step is small, the engine, its locks and its publishing are real.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.chaos import MOMENTS, SIGNALS
from benchmarks.chaos_flow import Kill, Trap, _terminated
from spark_jobs.manifests import Documents
from spark_jobs.requests import Outcome
from spark_jobs.specs import CleanSpec
from tasks.engine import Engine, engine_in_use
from tasks.steps import Step
from tasks.workspace import Workspace
from tasks.zombies import sweep_before_night

NIGHT = "2026-11-25"


def write_three_files(attempt: Path) -> Outcome:
    (attempt / "data").mkdir()
    for number in range(3):
        with (attempt / "data" / f"part-{number}.txt").open("w") as stream:
            stream.write(f"text {number}\n")
    return Outcome(num_rows=3, format="text", counts={"in": 3, "out": 3})


def run_step(root: Path, kill: Kill | None) -> Documents:
    trap = Trap(kill, Workspace(root), None)  # type: ignore[arg-type]  # no application is asked for
    if kill is not None:
        sys.addaudithook(lambda event, arguments: trap.audit(event, arguments))
    step = Step(
        name="clean", handle=Documents, entry="spark_jobs.specs", spec=CleanSpec(), night=NIGHT, work=write_three_files
    )
    with engine_in_use(Engine(Workspace(root), NIGHT, observers=(trap,))) as engine:
        return engine.run(step)


def run_and_die(root: Path, kill: Kill) -> int:
    """How the process ended: a negative signal, or 1 if it stopped as `nightmill run` does."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            signal.signal(signal.SIGTERM, _terminated)
            run_step(root, kill)
        except KeyboardInterrupt:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files_below(root: Path) -> list[str]:
    """Paths, with the step's key left out."""
    names = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return sorted(
        "/".join(part.split("-")[0] if part.startswith("clean-") else part for part in n.split("/")) for n in names
    )


def main() -> None:
    folder = Path(sys.argv[1])
    found: list[dict[str, Any]] = [{"moment": "", "digest": run_step(folder / "unbroken", None).digest}]
    for moment in MOMENTS:
        for name in SIGNALS:
            home = folder / f"{moment}-{name}".replace(" ", "-")
            root = home / "workspaces" / "demo"
            ended = run_and_die(root, Kill("clean", moment, "flow", name))  # type: ignore[arg-type]
            left = files_below(root)
            sweep_before_night(home)
            digest = run_step(root, None).digest
            found.append(
                {
                    "moment": moment,
                    "signal": name,
                    "ended": ended,
                    "left": left,
                    "digest": digest,
                    "after": files_below(root),
                }
            )
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
