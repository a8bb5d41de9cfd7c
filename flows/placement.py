"""Where a sub-flow runs: in this process tree (embedded), or through its deployment on a work pool (server, cluster).

The profile decides, never the flow: `NIGHTMILL_PROFILE` is set by `nightmill up` for its workers.
"""

from __future__ import annotations

import os
import time
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelling

from flows.night import FlowReport, Night
from spark_jobs.errors import ERRORS, NightmillError

LOOK_S = 2.0  # between two looks whether a sub-flow is over


def place(part: Flow[Any, Any], tonight: Night) -> FlowReport:
    """Run one sub-flow of the night and return its report. Raises what the sub-flow raised."""
    if tonight.engine.planning or FlowRunContext.get() is None:  # a plan, or a night run without an orchestrator
        return FlowReport.model_validate(part.fn(tonight.spec, tonight.night))
    if os.environ.get("NIGHTMILL_PROFILE", "embedded") == "embedded":
        return FlowReport.model_validate(part(tonight.spec, tonight.night))
    return _through_deployment(part.name, tonight)


def _through_deployment(name: str, tonight: Night) -> FlowReport:
    begun = run_deployment(
        f"{name}/{name}",
        parameters={"spec": tonight.spec.model_dump(mode="json"), "night": tonight.night},
        flow_run_name=f"{name} {tonight.spec.name} {tonight.night}",
        timeout=0,
    )
    assert isinstance(begun, FlowRun)  # a coroutine only inside an event loop, which our flows never are
    run = _ended(begun)
    assert run.state is not None
    if not run.state.is_completed():
        raise _error_of(name, run.state.type.value, run.state.message or "")
    report = FlowReport.model_validate(run.state.result())
    tonight.engine.results.extend(report.steps)
    return report


def _ended(run: FlowRun) -> FlowRun:
    """The run once it is over. A night that is cancelled cancels it at once; the server by itself would think of it up to 20 s later."""
    with get_client(sync_client=True) as client:
        try:
            while run.state is None or not run.state.is_final():
                time.sleep(LOOK_S)
                run = client.read_flow_run(run.id)
        except TerminationSignal:
            client.set_flow_run_state(run.id, Cancelling(message="the night it is part of was cancelled"))
            raise
    return run


def _error_of(name: str, state: str, message: str) -> NightmillError:
    """The sub-flow's own error: Prefect keeps only its text, "... encountered an exception: DataError: ..."."""
    for known, kind in ERRORS.items():
        marker = f"{known}: "
        if marker in message:
            return kind(f"{name}: {message.split(marker, 1)[1]}")
    return NightmillError(f"{name} ended as {state}: {message or 'no message'}; open its run in the Prefect UI")
