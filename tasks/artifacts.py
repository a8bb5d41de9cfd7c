"""What the Prefect UI shows of a night besides states: progress while training, the step table, links.

Nothing here can break a run: outside of a flow run, or with the API gone, each call does nothing.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from spark_jobs.manifests import CheckReport, Handle
from training.manifests import EvaluationReport

if TYPE_CHECKING:
    from uuid import UUID

    from tasks.engine import StepResult
    from tasks.forecast import Forecast, StepForecast
    from tasks.steps import Step

P = ParamSpec("P")
T = TypeVar("T")

UPDATE_S = 2.0  # seconds between two updates of a progress artifact


def never_fails(call: Callable[P, T]) -> Callable[P, T | None]:
    """Do nothing outside of a flow run; say on stderr, and go on, when the API does not take it."""

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T | None:
        if not in_flow_run():
            return None
        try:
            return call(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  an artifact is never worth a night
            print(f"artifact: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)  # noqa: T201
            return None

    return guarded


def in_flow_run() -> bool:
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext, TaskRunContext

    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


@never_fails
def publish_night_table(steps: list[StepResult], night: str, decision: str) -> None:
    """The step table of a night as an artifact `night-table`, a version a night."""
    from prefect.artifacts import create_table_artifact

    create_table_artifact(
        key="night-table",
        table=[
            {
                "step": line.step,
                "state": line.state,
                "why": line.why,
                "seconds": round(line.seconds, 1),
                "cpu seconds": round(line.cpu_seconds, 1),
                "gpu seconds": round(line.gpu_seconds, 1),
                "cost": round(line.cost, 4),
                "rows": line.rows,
                "output": line.output,
            }
            for line in steps
        ],
        description=f"Night {night}: {decision}"
        + (f" Cost {cost:,.4f}." if (cost := sum(line.cost for line in steps)) else ""),
    )


@never_fails
def publish_plan(steps: list[StepResult], told: Forecast, night: str) -> None:
    """What the night will run, why, and what it is expected to take, as an artifact `plan`, a version a night."""
    from prefect.artifacts import create_table_artifact

    expected = {line.step: line for line in told.steps}
    create_table_artifact(
        key="plan",
        table=[
            {"step": line.step, "state": line.state, "why": line.why} | describe_forecast(expected.get(line.step))
            for line in steps
        ],
        description=f"Night {night}: {describe_total(told)}",
    )


def describe_forecast(line: StepForecast | None) -> dict[str, Any]:
    """Columns of a step in a plan; blank where nothing is known or nothing will run."""
    if line is None or not line.num_runs:
        return {"seconds": "" if line is None else "never ran", "MB": "", "cost": ""}
    return {
        "seconds": round(line.seconds, 1), "MB": round(line.written_bytes / 1e6, 1),
        "cost": round(line.cost, 4) if line.cost else "",
    }  # fmt: skip


def describe_total(told: Forecast) -> str:
    """One line for people: how long, how much, at what cost."""
    if not told.steps:
        return "nothing to run"
    parts = [f"about {told.seconds:,.0f} s of steps", f"{told.cpu_seconds:,.0f} CPU-seconds"]
    if told.gpu_seconds:
        parts.append(f"{told.gpu_seconds:,.0f} GPU-seconds")
    parts.append(f"{told.written_bytes / 1e6:,.1f} MB to write, {told.free_bytes / 1e9:,.1f} GB free")
    if told.cost:
        parts.append(f"cost {told.cost:,.4f}")
    if told.unknown:
        parts.append(f"without the {len(told.unknown)} that never ran here")
    return ", ".join(parts)


@never_fails
def publish_link(key: str, url: str, text: str, description: str) -> None:
    """key: lower-case letters, digits and dashes."""
    from prefect.artifacts import create_link_artifact

    create_link_artifact(key=key, link=url, link_text=text, description=description)


@never_fails
def publish_markdown(key: str, markdown: str, description: str) -> None:
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(key=key, markdown=markdown, description=description)


class ArtifactObserver:
    """Progress of training in place, with loss and time left; a link to the data docs of each check."""

    def __init__(self) -> None:
        self._progress: UUID | None = None
        self._next_update = 0.0

    def step_started(self, step: Step[Any], why: str) -> None:
        self._progress, self._next_update = None, 0.0

    def step_event(self, step: Step[Any], event: dict[str, Any]) -> None:
        if not event.get("num_steps"):
            return
        share = 100.0 * event["step"] / event["num_steps"]
        if share < 100 and time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + UPDATE_S
        self._show_progress(step.name, share, describe_training(event))

    def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None:
        if isinstance(handle, CheckReport):
            page = Path(handle.folder("data_docs")) / "index.html"
            verdict = "passed" if handle.success else "failed: " + ", ".join(handle.failed)
            publish_link(
                f"data-docs-{step.name}", page.as_uri(), f"data docs of {step.name}",
                f"{handle.num_expectations} expectations on {handle.checked}, {verdict}",
            )  # fmt: skip

        if isinstance(handle, EvaluationReport):
            page = Path(handle.folder()) / "report.html"
            publish_link(
                "evaluation-report", page.as_uri(), f"evaluation of night {handle.night}",
                f"Candidate beside champion: {handle.decision}",
            )  # fmt: skip

    def night_page(self, page: Path) -> None:
        publish_link(
            "night-page", page.as_uri(), f"page of night {page.stem}", "What came in, what left and why, at what cost"
        )

    def _show_progress(self, name: str, share: float, description: str) -> None:
        if self._progress is None:
            self._progress = _create_progress(f"progress-{name}", share, description)
        else:
            _update_progress(self._progress, share, description)


def describe_training(event: dict[str, Any]) -> str:
    """One line for people: step, loss, speed, time left."""
    parts = [f"step {event['step']}/{event['num_steps']}"]
    for name, text in (("loss", "loss {:.3f}"), ("tokens_per_s", "{:,.0f} tokens/s"), ("eta_s", "{:.0f} s left")):
        if name in event:
            parts.append(text.format(event[name]))
    return ", ".join(parts)


@never_fails
def _create_progress(key: str, share: float, description: str) -> UUID:
    from prefect.artifacts import create_progress_artifact

    return cast("UUID", create_progress_artifact(progress=share, key=key, description=description))


@never_fails
def _update_progress(artifact_id: UUID, share: float, description: str) -> None:
    from prefect.artifacts import update_progress_artifact

    update_progress_artifact(artifact_id, progress=share, description=description)
