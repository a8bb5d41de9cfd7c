"""Where a sub-flow runs: in this process tree (embedded), or through its deployment on a work pool (server, cluster).

The profile decides, never the flow: `NIGHTMILL_PROFILE` is set by `nightmill up` for its workers.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment

from flows.night import FlowReport, Night
from spark_jobs.errors import ERRORS, NightmillError


def place(part: Flow[Any, Any], tonight: Night) -> FlowReport:
    """Run one sub-flow of the night and return its report. Raises what the sub-flow raised."""
    if tonight.engine.planning or FlowRunContext.get() is None:  # a plan, or a night run without an orchestrator
        return FlowReport.model_validate(part.fn(tonight.spec, tonight.night))
    if os.environ.get("NIGHTMILL_PROFILE", "embedded") == "embedded":
        return FlowReport.model_validate(part(tonight.spec, tonight.night))
    return _through_deployment(part.name, tonight)


def _through_deployment(name: str, tonight: Night) -> FlowReport:
    run = run_deployment(
        f"{name}/{name}",
        parameters={"spec": tonight.spec.model_dump(mode="json"), "night": tonight.night},
        flow_run_name=f"{name} {tonight.spec.name} {tonight.night}",
    )
    assert isinstance(run, FlowRun)  # a coroutine only inside an event loop, which our flows never are
    assert run.state is not None
    if not run.state.is_completed():
        raise _error_of(name, run.state.type.value, run.state.message or "")
    report = FlowReport.model_validate(run.state.result())
    tonight.engine.results.extend(report.steps)
    return report


def _error_of(name: str, state: str, message: str) -> NightmillError:
    """The sub-flow's own error: Prefect keeps only its text, "... encountered an exception: DataError: ..."."""
    for known, kind in ERRORS.items():
        marker = f"{known}: "
        if marker in message:
            return kind(f"{name}: {message.split(marker, 1)[1]}")
    return NightmillError(f"{name} ended as {state}: {message or 'no message'}; open its run in the Prefect UI")
