"""What MLflow is told about the steps of a night: parameters, inputs, live metrics, results."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from spark_jobs.manifests import MANIFEST, CheckReport, Handle
from tasks.publishing import curves_folder
from tasks.server_databases import prepare_database
from tasks.servers import servers_folder, tracking_uri
from tasks.tracking import Status, Tracking
from tasks.workspace import Workspace, home
from training.manifests import BenchmarkScorecard, CompressionChoice, ModelFolder, Release, Verdict

if TYPE_CHECKING:
    from tasks.engine import StepResult
    from tasks.steps import Step

HEADLINES = ("bits_per_byte", "perplexity", "final_loss", "gzip_bits_per_byte")  # also on the night's own run


class TrackingObserver:
    """Tells MLflow about the steps of one night. Make one in the process that runs them, close it when it ends.

    outermost: this process runs the whole night, so the parent run ends with it; a sub-flow's process only joins it.
    """

    def __init__(
        self, tracking: Tracking, night: str, spec: dict[str, Any] | None = None, outermost: bool = True
    ) -> None:
        self._tracking = tracking
        self._night = night
        self._outermost = outermost
        tracking.send(
            {
                "do": "start",
                "key": night,
                "name": night,
                "keep": not outermost,
                "tags": {"nightmill.night": night} | git_tags() | owner_tags(),
                "params": flatten(spec or {}),
            }
        )

    def step_started(self, step: Step[Any], why: str) -> None:
        self._start(step, why, keep=False)

    def step_event(self, step: Step[Any], event: dict[str, Any]) -> None:
        values = {
            name: value for name, value in event.items() if _is_number(value) and name not in ("step", "num_steps")
        }
        if values:
            self._tracking.send(
                {"do": "metrics", "key": self._key(step), "values": values, "step": int(event.get("step", 0))}
            )

    def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None:
        key = self._key(step)
        if result.state == "cached":
            self._start(step, result.why, keep=True)
        if handle is not None:
            self._log_output(key, step, result, handle)
        status: Status = "FINISHED" if result.state in ("ran", "cached") else "FAILED"
        tags = {"nightmill.state": result.state, "nightmill.why": result.why}
        if handle is not None:
            tags |= {"nightmill.address": handle.address, "nightmill.manifest_sha256": handle.digest}
        self._tracking.send({"do": "end", "key": key, "status": status, "tags": tags})

    def night_page(self, page: Path) -> None:
        self._tracking.send({"do": "artifacts", "key": self._night, "path": str(page), "to": "report"})

    @property
    def night(self) -> str:
        return self._night

    def send(self, record: dict[str, Any]) -> None:
        """A record of a run that is no step's, see `Tracking.send`."""
        self._tracking.send(record)

    def run_key(self, step: Step[Any]) -> str:
        """The key of the step's run, for whoever logs a model under it."""
        return self._key(step)

    def close(self, status: Status = "FINISHED") -> None:
        """End the night's run (if it is ours to end) and deliver everything."""
        if self._outermost:
            self._tracking.send({"do": "end", "key": self._night, "status": status})
        self._tracking.close()

    def _key(self, step: Step[Any]) -> str:
        return f"{self._night}/{step.name}-{step.key()}"

    def _start(self, step: Step[Any], why: str, keep: bool) -> None:
        key = self._key(step)
        self._tracking.send(
            {
                "do": "start",
                "key": key,
                "name": step.name,
                "parent": self._night,
                "keep": keep,
                "tags": {"nightmill.night": self._night, "nightmill.step": step.name, "nightmill.why": why}
                | owner_tags(),
                "params": flatten(step.spec.model_dump(mode="json")),
            }
        )
        if step.inputs:
            self._tracking.send(
                {"do": "inputs", "key": key, "datasets": [_dataset(r, h) for r, h in step.inputs.items()]}
            )

    def _log_output(self, key: str, step: Step[Any], result: StepResult, handle: Handle) -> None:
        numbers = output_numbers(handle)
        if isinstance(handle, BenchmarkScorecard):
            from training.benchmarks.results import main_values  # pyarrow, which most runs need not import here

            numbers |= main_values(Path(handle.folder()) / "scores.json")
        usage = {"seconds": result.seconds, "cpu_seconds": result.cpu_seconds, "peak_mb": result.peak_mb}
        if result.state == "ran":
            numbers |= usage
        self._tracking.send({"do": "metrics", "key": key, "values": numbers})
        headline = {f"{step.name}.{name}": value for name, value in numbers.items() if name in HEADLINES}
        if headline:
            self._tracking.send({"do": "metrics", "key": self._night, "values": headline})
        if result.state == "ran":
            self._tracking.send({"do": "artifacts", "key": key, "path": str(Path(handle.uri) / MANIFEST)})
            traces = curves_folder(handle.workspace, step.night, Path(handle.uri).name) / "profile"
            if traces.is_dir():
                self._tracking.send({"do": "artifacts", "key": key, "path": str(traces), "to": "profile"})
            if isinstance(handle, BenchmarkScorecard):
                path = str(Path(handle.folder()) / "scores.json")
                self._tracking.send({"do": "artifacts", "key": key, "path": path, "to": "output"})
            if isinstance(handle, CheckReport | Verdict | Release | CompressionChoice):
                self._tracking.send({"do": "artifacts", "key": key, "path": handle.folder(), "to": "output"})
            if isinstance(handle, ModelFolder):  # what compression did to each layer, and the card
                for name in ("report.parquet", "README.md"):
                    if (Path(handle.folder()) / name).is_file():
                        path = str(Path(handle.folder()) / name)
                        self._tracking.send({"do": "artifacts", "key": key, "path": path, "to": "output"})
            if isinstance(handle, CheckReport):
                self._tracking.send(
                    {"do": "artifacts", "key": key, "path": handle.folder("data_docs"), "to": "data_docs"}
                )


def open_tracking(workspace: Workspace) -> Tracking:
    """Tracking of a pipeline, at the server of `nightmill up` or in the database itself."""
    folder = servers_folder(home())
    prepare_database("mlflow", folder)
    return Tracking(tracking_uri(home()), workspace, folder / "mlartifacts")


def owner_tags() -> dict[str, str]:
    """Who writes a run: `host:pid:start time`, so that a killed writer can be told from a living one."""
    process = psutil.Process()
    tags = {
        "nightmill.owner": f"{socket.gethostname()}:{process.pid}:{process.create_time()}",
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": "nightmill",
    }
    flow_run_id = prefect_flow_run_id()
    return tags | ({"prefect.flow_run_id": flow_run_id} if flow_run_id else {})


def git_tags() -> dict[str, str]:
    """The commit of a checkout; nothing for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return {}
    asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"mlflow.source.git.commit": asked.stdout.strip()} if asked.returncode == 0 else {}


def prefect_flow_run_id() -> str:
    """Of the flow run around us; empty outside of one. Does not import prefect by itself."""
    if "prefect" not in sys.modules:
        return ""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else ""


def output_numbers(handle: Handle) -> dict[str, float]:
    """Every number a handle carries beyond its files: counts by reason, and the fields of its own type."""
    own = handle.model_dump(exclude=set(Handle.model_fields))
    numbers = {name: float(value) for name, value in own.items() if _is_number(value)}
    counts = {f"counts.{name}": float(value) for name, value in handle.counts.items()}
    return {"rows": float(handle.num_rows)} | counts | numbers


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of a spec by dotted path, as text."""
    if isinstance(tree, dict):
        pairs: Iterable[tuple[str, Any]] = ((f"{prefix}.{k}" if prefix else str(k), v) for k, v in tree.items())
        return {path: leaf for p, v in pairs for path, leaf in flatten(v, p).items()}
    return {prefix: tree if isinstance(tree, str) else json.dumps(tree)} if prefix else {}


def _dataset(role: str, handle: Handle) -> dict[str, Any]:
    return {
        "role": role,
        "name": handle.step,
        "digest": handle.digest,
        "address": handle.address,
        "uri": handle.uri,
        "num_rows": handle.num_rows,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
