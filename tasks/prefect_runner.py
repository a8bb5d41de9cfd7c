"""Each step as a Prefect task: what the orchestrator knows is its name, its retries and how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from spark_jobs.errors import JobCrashed, StepBusy
from tasks.engine import StepResult
from tasks.steps import Step

RETRY_DELAYS_S = [2.0, 10.0]


class RunLog:
    """Takes what child processes print, in their pump threads, to the log of the task run that is under way."""

    def __init__(self) -> None:
        self.logger: logging.Logger | logging.LoggerAdapter[Any] | None = None

    def __call__(self, line: str) -> None:
        if self.logger is not None and line.strip():
            self.logger.info(line)


run_log = RunLog()


def run_as_task(step: Step[Any], body: Callable[[], StepResult]) -> StepResult:
    """Run `body` as a task named after the step. A hit ends as Completed(name="Cached").

    Prefect's own caching is off: it sees neither helpers nor the bytes behind a path (see docs/adr/0003). No tags: for each tag
    Prefect asks the server for a concurrency slot before the step begins; pools and deployments have the limits here.
    """
    results: list[StepResult] = []

    def run_step() -> State[Any]:
        run_log.logger = get_run_logger()
        result = body()
        results.append(result)
        if result.state == "cached":
            return Completed(name="Cached", message=result.why)
        return Completed(message=f"{result.rows} rows at {result.output}")

    task(
        name=step.name,
        task_run_name=step.name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_DELAYS_S),
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_condition_fn=worth_retrying,
    )(run_step)()
    return results[-1]


def worth_retrying(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """A process that died or a step that was busy may succeed next time; a failed check or a wrong request never will."""
    try:
        state.result()
    except (JobCrashed, StepBusy):
        return True
    except BaseException:  # noqa: BLE001  whatever else it was, it is being raised to the flow
        return False
    return False
