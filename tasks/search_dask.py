"""Trials on Dask workers, as Prefect tasks: a local cluster by default, or the scheduler at NIGHTMILL_DASK_ADDRESS.

NIGHTMILL_DASK_WORKERS: processes of the local cluster, 2 by default. Both are the machine's, never a spec's: they change when
a trial runs, not what it gives.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import distributed
from distributed.security import Security
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect_dask import DaskTaskRunner
from prefect_dask.task_runners import PrefectDaskFuture

from spark_jobs.errors import JobCrashed, RequestError
from spark_jobs.manifests import LabelledSet
from tasks.application import Application, AppName
from tasks.engine import StepResult, engine_in_use
from tasks.prefect_runner import RETRY_DELAYS_S, run_log, worth_retrying
from tasks.search_steps import trial_step
from tasks.search_worker import TrialJob, TrialWorkspace, WorkerEngine, WorkerJob
from tasks.steps import Step
from tasks.workspace import Workspace
from training.manifests import ModelFolder

ADDRESS = "NIGHTMILL_DASK_ADDRESS"
WORKERS = "NIGHTMILL_DASK_WORKERS"
# Dask sets these for its workers. A trial would then add its sums in another order than the same training run alone.
DASK_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_applications: dict[AppName, Application] = {}  # of this process, if it is a worker: it serves trial after trial


def trial_runner() -> DaskTaskRunner:
    """Starts nothing yet: the cluster comes with the first trial that has to run."""
    address = os.environ.get(ADDRESS, "")
    return DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_class=local_cluster)


def local_cluster(asynchronous: bool = False) -> distributed.LocalCluster:
    """Workers on this machine, one thread each, reachable from it alone and only with this cluster's own certificate: whoever
    may speak to a scheduler may run code.

    Raises: RequestError if NIGHTMILL_DASK_WORKERS is not a number.
    """
    wanted = os.environ.get(WORKERS, "2")
    if not wanted.isdecimal() or int(wanted) == 0:
        raise RequestError(f"{WORKERS}={wanted}: wanted a number of processes, 1 or more")
    return distributed.LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=int(wanted), threads_per_worker=1, processes=True, asynchronous=asynchronous, host="127.0.0.1",
        protocol="tls", security=Security.temporary(),  # type: ignore[no-untyped-call]
        dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
        memory_limit=0,  # it would watch the worker's own process, not the one that trains
    )  # fmt: skip


def run_on_dask(
    runner: DaskTaskRunner, jobs: Sequence[TrialJob], max_parallel: int
) -> Iterator[tuple[TrialJob, StepResult]]:
    """Each job and how it ended, as they end; at most `max_parallel` at a time.

    A job whose worker dies is given to another one by Dask. Raises: what a job raised; JobCrashed if several workers in
    turn died of it.
    """
    waiting = list(reversed(jobs))
    running: dict[str, tuple[TrialJob, PrefectDaskFuture[str]]] = {}
    while waiting or running:
        while waiting and len(running) < max_parallel:
            job = waiting.pop()
            future = _submit(runner, job)
            running[future.wrapped_future.key] = (job, future)
        for key in _ended(runner, [future.wrapped_future for _, future in running.values()]):
            job, future = running.pop(key)
            yield job, _result(job, future)


def _ended(runner: DaskTaskRunner, futures: Sequence[Any]) -> list[str]:
    """Keys of those that have ended, once there is one."""
    with runner.client.as_current():
        ended = distributed.wait(futures, return_when="FIRST_COMPLETED").done  # type: ignore[no-untyped-call]
    return [future.key for future in ended]


def _submit(runner: DaskTaskRunner, job: TrialJob) -> PrefectDaskFuture[str]:
    named = run_trial.with_options(task_run_name=job.name)
    return runner.submit(named, parameters={"job": job.model_dump_json()})


def _result(job: TrialJob, future: PrefectDaskFuture[str]) -> StepResult:
    try:
        return StepResult.model_validate_json(future.result())
    except distributed.scheduler.KilledWorker as error:
        raise JobCrashed(
            f"{job.name}: every worker that took it died; look for `killed` in the machine's log (out of memory?), lower "
            f"{WORKERS}, run again"
        ) from error


# How a step is a Prefect task in a worker.
IN_WORKER: dict[str, Any] = {
    "tags": ["torch"], "cache_policy": NO_CACHE, "persist_result": False, "retries": len(RETRY_DELAYS_S),
    "retry_delay_seconds": RETRY_DELAYS_S, "retry_condition_fn": worth_retrying,
}  # fmt: skip


@task(name="trial", **IN_WORKER)
def run_trial(job: str) -> str:
    """In a worker: find the trial's output, or make it. In and out as JSON: TrialJob, StepResult. Raises: see `run_in_worker`."""
    told = TrialJob.model_validate_json(job)

    def step_in(workspace: Workspace) -> Step[Any]:
        labelled = LabelledSet.load(workspace.at(told.labelled))
        base = ModelFolder.load(workspace.at(told.base))
        return trial_step(labelled, base, told.spec, told.night)

    return run_in_worker(told, step_in).model_copy(update={"step": told.name}).model_dump_json()


def run_in_worker(told: WorkerJob, step_in: Callable[[Workspace], Step[Any]]) -> StepResult:
    """Find the step's output in the workspace that all workers see, or make it.

    Raises: RequestError if the worker's code or libraries are not those of the flow: its numbers could be others.
    """
    run_log.logger = get_run_logger()
    for name in DASK_THREADS:
        os.environ.pop(name, None)
    workspace = TrialWorkspace(Path(told.root))
    engine = WorkerEngine(workspace, told.night, own_applications(workspace, told.night, run_log))
    with engine_in_use(engine):
        step = step_in(workspace)
        if step.key() != told.key:
            raise RequestError(
                f"{told.name}: the Dask worker on {socket.gethostname()} has other code or libraries than the flow; install "
                "the same version there (or: the code changed while this ran), and run again"
            )
        engine.run(step)
    return engine.results[-1]


def own_applications(
    workspace: TrialWorkspace, night: str, on_line: Callable[[str], None]
) -> dict[AppName, Application]:
    if not _applications:
        logs = workspace.root / "logs" / night / f"worker-{os.getpid()}"
        _applications["torch"] = Application("torch", logs, on_line)
    return _applications
