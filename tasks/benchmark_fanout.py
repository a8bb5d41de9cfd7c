"""Shards of benchmarks one after the other here, or side by side on Dask where the machine says so; the same bytes either way.

NIGHTMILL_DASK_ADDRESS: a scheduler whose workers see the workspace and the benchmarks' files under the same paths.
NIGHTMILL_DASK_WORKERS: processes of a cluster on this machine; with neither, nothing is started. Both are the machine's, never a
spec's: they change when a shard is answered, not what it gives.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tasks.engine import Engine, current_engine
from tasks.steps import Step, find
from training.manifests import BenchmarkAnswers

ADDRESS, WORKERS = "NIGHTMILL_DASK_ADDRESS", "NIGHTMILL_DASK_WORKERS"


def answered(steps: Sequence[Step[BenchmarkAnswers]]) -> list[BenchmarkAnswers]:
    """The output of each, in order."""
    engine = current_engine()
    if not engine.planning and (os.environ.get(ADDRESS) or os.environ.get(WORKERS)):
        missing = [step for step in steps if find(step, engine.workspace)[0] is None]
        if len(missing) > 1:
            return _answered_on_dask(steps, missing, engine)
    return [engine.run(step) for step in steps]


def _answered_on_dask(
    steps: Sequence[Step[BenchmarkAnswers]], missing: Sequence[Step[BenchmarkAnswers]], engine: Engine
) -> list[BenchmarkAnswers]:
    """Raises: what a shard raised; DataError if an output cannot be read."""
    from tasks.benchmark_dask import answer_on_dask

    for result in answer_on_dask(missing, engine.workspace.root):
        engine.note(result)
    elsewhere = {step.key() for step in missing}
    return [_load(step, engine) if step.key() in elsewhere else engine.run(step) for step in steps]


def _load(step: Step[BenchmarkAnswers], engine: Engine) -> BenchmarkAnswers:
    handle = BenchmarkAnswers.load(engine.workspace.at(step.address()))
    engine.workspace.remember(engine.night, step.name, handle)
    return handle
