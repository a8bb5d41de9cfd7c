"""Local ranks of a training: started by torch's elastic launcher, ended together, with one clear error.

Whatever is trained, `work` is what each rank does between joining the others and leaving them.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from spark_jobs.errors import JobCrashed, NightmillError, TrainingError
from spark_jobs.requests import Failure, Outcome, Request, failure_of
from training.loop_spec import LoopSpec
from training.pretrain.compiled_blocks import keep_kernels_apart
from training.pretrain.mesh import Ranks, join_ranks, num_restarts
from training.pretrain.profiling import record_collectives
from training.pretrain.progress import relayed_events
from training.processes import die_with_parent, error_of, signal_name

PEER_GRACE_S = 2.0  # the launcher looks every 0.1 s

Work = Callable[[Request, Ranks, str], Outcome]  # the string: why the ranks were started again, if they were


def launch_ranks(request: Request, spec: LoopSpec, work: Work) -> Outcome:
    """Do `work` on as many local ranks as the spec says; what rank 0 answers.

    The launcher is torch elastic, which torchrun itself calls. On CPU the ranks are forked from this process, which has
    the libraries loaded and has run no operation yet; after CUDA has started a fork is not safe, so they are spawned.
    """
    on_cuda = torch.cuda.is_available()
    # A spawned rank does not inherit the answer's file descriptor: its events are passed on from the file they are in.
    relay = relayed_events(Path(request.out) / "scratch" / "events.jsonl") if on_cuda else contextlib.nullcontext()
    with tempfile.TemporaryDirectory(prefix="nightmill-ranks-") as failures:
        launch = elastic_launch(_config_of(spec, failures, "spawn" if on_cuda else "fork"), _rank)
        try:
            with relay:
                answers = launch(request.model_dump_json(), spec.parallel.offload, work, os.getpid(), failures)
        except ChildFailedError as err:
            raise _crash_of(err, _failure_file(failures, spec.max_restarts)) from err
    answer = answers[0]
    if "failure" in answer:
        raise error_of(Failure.model_validate(answer["failure"]))
    return Outcome.model_validate(answer["outcome"])


def _config_of(spec: LoopSpec, logs: str, start_method: str) -> LaunchConfig:
    """logs: a folder for the launcher's own files, which it would else leave in the system's folder for such."""
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=spec.ranks,
        run_id="nightmill",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port on loopback
        local_addr="localhost",
        max_restarts=spec.max_restarts,
        monitor_interval=0.1,
        start_method=start_method,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )


def _failure_file(failures: str, restart: int) -> Path:
    """Where the first rank to fail after `restart` restarts says why."""
    return Path(failures) / f"{restart}.json"


def _crash_of(error: ChildFailedError, first_failure: Path) -> NightmillError:
    """What the first rank to fail said; if none could (a kill), how it ended."""
    if first_failure.exists():
        return error_of(Failure.model_validate_json(first_failure.read_text()))
    rank, failure = error.get_first_failure()
    how = f"killed by {signal_name(-failure.exitcode)}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
    return JobCrashed(f"rank {rank} was {how}; run the step again, it continues from the newest checkpoint")


def _rank(request_json: str, offload: bool, work: Work, launcher: int, failures: str) -> dict[str, Any]:
    """One rank. Returns {"outcome": ...} (of rank 0) or {"failure": ...}, which all ranks reach together.

    An error of this rank alone is left in a file of the folder `failures` and ends the rank. One that only says that a
    peer is gone waits a moment, so that the launcher sees the peer's end first and reports that; SIGTERM is the launcher
    itself stopping this rank because a peer ended, so it is no failure of this one either.
    """
    die_with_parent(launcher)
    restart = num_restarts()
    try:
        why = _why_restarted(_failure_file(failures, restart - 1))
        return work_as_rank(Request.model_validate_json(request_json), offload, work, why)
    except SignalException:
        raise
    except (Exception, CheckpointException) as error:  # the latter is no Exception, and is what a full disk becomes
        if _says_peer_is_gone(error) or _says_peer_is_gone(error.__cause__):
            time.sleep(PEER_GRACE_S)
        else:
            with contextlib.suppress(FileExistsError), _failure_file(failures, restart).open("x") as file:
                file.write(failure_of(error).model_dump_json())
        raise


def _says_peer_is_gone(error: BaseException | None) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _why_restarted(failure: Path) -> str:
    """What the rank that failed last left in the file; one that was killed left nothing."""
    if not failure.exists():
        return "a rank was killed"
    return f"a rank failed: {Failure.model_validate_json(failure.read_text()).message}"


def work_as_rank(request: Request, offload: bool, work: Work, why_restarted: str = "a rank ended") -> dict[str, Any]:
    """Join the other ranks and do `work`: {"outcome": ...}, or {"failure": ...} if all ranks decided to stop."""
    if torch.cuda.is_available():
        record_collectives(Path(request.out) / "scratch" / "flight-recorder")
    else:
        keep_kernels_apart(Path(request.out) / "scratch" / "kernels")
    ranks = join_ranks(offload)
    try:
        outcome = work(request, ranks, why_restarted if num_restarts() else "")
    except TrainingError as error:  # a decision of all ranks, not a crash of one
        return {"failure": failure_of(error).model_dump()}
    dist.destroy_process_group()  # on success only: after a crash it would wait for peers that are gone
    return {"outcome": outcome.model_dump(mode="json")}
