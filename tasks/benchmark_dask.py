"""Shards of benchmarks on Dask workers, as Prefect tasks. See `tasks.search_dask`, whose cluster and workers these are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prefect import task
from prefect_dask.task_runners import PrefectDaskFuture

from tasks.engine import StepResult
from tasks.search_dask import IN_WORKER, run_in_worker, trial_runner
from tasks.search_worker import WorkerJob
from tasks.steps import Step
from tasks.workspace import Workspace
from training.benchmark_spec import AnswerJobSpec
from training.manifests import BenchmarkAnswers, ModelFolder


class ShardJob(WorkerJob):
    """model: address."""

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


@task(name="answer-benchmark", **IN_WORKER)
def answer_shard(job: str) -> str:
    """In a worker: find the shard's answers, or ask for them. In and out as JSON: ShardJob, StepResult. Raises: see `run_in_worker`."""
    from tasks.benchmark_steps import answer_steps

    told = ShardJob.model_validate_json(job)

    def step_in(workspace: Workspace) -> Step[BenchmarkAnswers]:
        model = ModelFolder.load(workspace.at(told.model))
        return answer_steps(model, told.spec.benchmark, told.spec.digests, told.night)[told.spec.shard]

    return run_in_worker(told, step_in).model_dump_json()
