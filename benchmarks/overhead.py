"""What a night costs beside its jobs, once the servers are up: the demo night against the servers of `nightmill up`.

    python -m benchmarks.overhead [--nights 2]

Jobs are what the child processes do (Spark and its JVM, ranks, compression, evaluation) and what a step does in their place; all
else is overhead: imports of the command, Prefect's task runs, MLflow's runs, manifests, artifacts, the ends of processes. Last
line, JSON, medians over the nights, each in a home of its own: {"night_s", "job_s", "overhead", "flow_overhead"}. `overhead` is
the share of the whole command's wall seconds outside jobs, `flow_overhead` that of the flow run's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.ports import free_port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=2)
    asked = parser.parse_args()
    now = datetime.now(UTC)
    print(f"{now:%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    nights = []
    for number in range(asked.nights):
        with tempfile.TemporaryDirectory(prefix="overhead-") as home:
            nights.append(measure(Path(home), now.date().isoformat()))
        print(f"night {number + 1}: {nights[-1]}", flush=True)
    print(json.dumps({name: round(median(night[name] for night in nights), 3) for name in nights[0]}))


def measure(home: Path, night: str) -> dict[str, float]:
    nightmill(home, "up", "--port", str(free_port()), "--mlflow-port", str(free_port()))
    try:
        began = time.monotonic()
        report = json.loads(nightmill(home, "run", "demo", "--night", night, "--json").splitlines()[-1])
        night_s = time.monotonic() - began
        flow_s = flow_run_seconds(home)
    finally:
        nightmill(home, "down")
    job_s = sum(step["seconds"] for step in report["steps"])
    return {
        "night_s": round(night_s, 1), "job_s": round(job_s, 1),
        "overhead": round(1 - job_s / night_s, 3), "flow_overhead": round(1 - job_s / flow_s, 3),
    }  # fmt: skip


def flow_run_seconds(home: Path) -> float:
    """Of the one nightly, as the server has it."""
    code = (
        "import json, os; from pathlib import Path; from tasks.servers import client_environment\n"
        "os.environ.update(client_environment(Path(os.environ['NIGHTMILL_HOME'])))\n"
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as client:\n"
        "    print(json.dumps([run.total_run_time.total_seconds() for run in client.read_flow_runs() if run.start_time]))"
    )
    found: list[float] = json.loads(python(home, "-c", code).splitlines()[-1])
    return max(found)  # sub-flows are shorter


def nightmill(home: Path, *arguments: str) -> str:
    return python(home, "-m", "flows", *arguments)


def python(home: Path, *arguments: str) -> str:
    environment: dict[str, Any] = os.environ | {"NIGHTMILL_HOME": str(home)}
    done = subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
