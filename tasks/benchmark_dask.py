"""Shards of benchmarks on Dask workers, as Prefect tasks. See `tasks.search_dask`, whose cluster and workers these are."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect_dask.task_runners import PrefectDaskFuture

from spark_jobs.errors import RequestError
from spark_jobs.manifests import Frozen
from tasks.engine import StepResult, engine_in_use
from tasks.prefect_runner import RETRY_DELAYS_S, run_log, worth_retrying
from tasks.search_dask import DASK_THREADS, own_applications, trial_runner
from tasks.search_worker import TrialWorkspace, WorkerEngine
from tasks.steps import Step
from training.benchmark_spec import AnswerJobSpec
from training.manifests import BenchmarkAnswers, ModelFolder


class ShardJob(Frozen):
    """A shard as it is sent to a worker. root: the workspace, on a disk that all workers see; model: address. key: of its step,
    as the flow's own code and libraries make it."""

    name: str
    key: str
    root: str
    night: str
    model: str
    spec: AnswerJobSpec


def answer_on_dask(steps: Sequence[Step[BenchmarkAnswers]], root: Path) -> Iterator[StepResult]:
    """Each step's line once it is done, in the order of `steps`. Raises: what a shard raised."""
    with trial_runner() as runner:
        futures: list[PrefectDaskFuture[str]] = [
            runner.submit(answer_shard.with_options(task_run_name=step.name), parameters={"job": job_of(step, root)})
            for step in steps
        ]
        for future in futures:
            yield StepResult.model_validate_json(future.result())


def job_of(step: Step[BenchmarkAnswers], root: Path) -> str:
    assert isinstance(step.spec, AnswerJobSpec)
    return ShardJob(
        name=step.name, key=step.key(), root=str(root), night=step.night, model=step.inputs["model"].address, spec=step.spec
    ).model_dump_json()  # fmt: skip


@task(
    name="answer-benchmark",
    tags=["torch"],
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(RETRY_DELAYS_S),
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=worth_retrying,
)
def answer_shard(job: str) -> str:
    """In a worker: find the shard's answers, or ask for them. In and out as JSON: ShardJob, StepResult.

    Raises: RequestError if the worker's code or libraries are not those of the flow: its numbers could be others.
    """
    from tasks.benchmark_steps import answer_steps

    run_log.logger = get_run_logger()
    told = ShardJob.model_validate_json(job)
    for name in DASK_THREADS:
        os.environ.pop(name, None)
    workspace = TrialWorkspace(Path(told.root))
    engine = WorkerEngine(workspace, told.night, own_applications(workspace, told.night, run_log))
    with engine_in_use(engine):
        model = ModelFolder.load(workspace.at(told.model))
        step = answer_steps(model, told.spec.benchmark, told.spec.digests, told.night)[told.spec.shard]
        if step.key() != told.key:
            raise RequestError(
                f"{told.name}: the Dask worker on {socket.gethostname()} has other code or libraries than the flow; install "
                "the same version there (or: the code changed while this ran), and run again"
            )
        engine.run(step)
    return engine.results[-1].model_dump_json()
