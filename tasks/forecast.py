"""What the steps of a plan will take, from what the same steps took before in this workspace.

A step's figures are medians of its newest outputs, whose `_report.json` says what they cost and whose manifest how large they
are. A step that never ran is named, not guessed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from spark_jobs.errors import DiskFull
from spark_jobs.manifests import MANIFEST, REPORT, Frozen
from tasks.engine import StepResult
from tasks.machine import MIN_FREE_BYTES
from tasks.prices import Prices
from tasks.workspace import Workspace

RUNS = 5  # newest outputs of a step that count


class StepForecast(Frozen):
    """num_runs: earlier outputs behind the figures; 0: the step never ran here, and they are unknown."""

    step: str
    num_runs: int
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    written_bytes: int = 0
    cost: float = 0.0


class Forecast(Frozen):
    """Sums over the steps that would run. unknown: those without history. free_bytes: of the workspace's disk."""

    steps: tuple[StepForecast, ...]
    seconds: float
    cpu_seconds: float
    gpu_seconds: float
    written_bytes: int
    cost: float
    unknown: tuple[str, ...]
    free_bytes: int

    @property
    def wanted_bytes(self) -> int:
        """Room that the night needs: a step's attempt is written beside what is there, and a working margin stays free."""
        return self.written_bytes + MIN_FREE_BYTES

    @property
    def fits(self) -> bool:
        return self.free_bytes >= self.wanted_bytes


def forecast(workspace: Workspace, steps: Iterable[StepResult]) -> Forecast:
    """steps: of a plan; only those in state `would run` cost anything. Reads manifests and reports only."""
    prices = Prices.of_this_machine()
    told = tuple(_of_step(workspace, line.step, prices) for line in steps if line.state == "would run")
    return Forecast(
        steps=told,
        seconds=round(sum(s.seconds for s in told), 2),
        cpu_seconds=round(sum(s.cpu_seconds for s in told), 2),
        gpu_seconds=round(sum(s.gpu_seconds for s in told), 2),
        written_bytes=sum(s.written_bytes for s in told),
        cost=round(sum(s.cost for s in told), 6),
        unknown=tuple(s.step for s in told if not s.num_runs),
        free_bytes=_free_bytes(workspace.root),
    )


def require_room(workspace: Workspace, told: Forecast) -> None:
    """Raises: DiskFull before any work is done, if what the night is expected to write does not fit."""
    if not told.fits:
        largest = sorted(told.steps, key=lambda s: -s.written_bytes)[:3]
        named = ", ".join(f"{s.step} {s.written_bytes / 2**20:,.0f} MiB" for s in largest)
        raise DiskFull(
            f"{workspace.root}: {told.free_bytes / 2**30:.2f} GiB free; the night is expected to write "
            f"{told.written_bytes / 2**30:.2f} GiB ({named}), and {MIN_FREE_BYTES / 2**30:.0f} GiB must stay free: free some space, "
            "run `nightmill maintenance`, or set NIGHTMILL_HOME to a larger disk"
        )


def _of_step(workspace: Workspace, step: str, prices: Prices) -> StepForecast:
    runs = [run for run in map(_run, _newest(workspace, step)) if run is not None]
    if not runs:
        return StepForecast(step=step, num_runs=0)
    seconds, cpu, gpu, size = (median(values) for values in zip(*runs, strict=True))
    return StepForecast(
        step=step, num_runs=len(runs), seconds=round(seconds, 2), cpu_seconds=round(cpu, 2), gpu_seconds=round(gpu, 2),
        written_bytes=int(size), cost=round(prices.cost(cpu, gpu), 6),
    )  # fmt: skip


def _newest(workspace: Workspace, step: str) -> list[Path]:
    folders = [path.parent for path in workspace.root.glob(f"*/{step}-*/{MANIFEST}")]
    own = [folder for folder in folders if folder.name.rpartition("-")[0] == step]
    return sorted(own, key=lambda folder: (folder / MANIFEST).stat().st_mtime, reverse=True)[:RUNS]


def _run(folder: Path) -> tuple[float, float, float, int] | None:
    """(seconds, CPU-seconds, GPU-seconds, bytes) of one output; None where its report is gone."""
    try:
        cost = json.loads((folder / REPORT).read_text())
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    size = sum(entry["size_bytes"] for entry in files)
    return float(cost["seconds"]), float(cost["cpu_seconds"]), float(cost.get("gpu_seconds", 0.0)), size


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
