"""Ranks of a training: started by torch's elastic launcher, ended together, with one clear error.

They are all on this machine, or shared out over several (nodes.py). Whatever is trained, `work` is what each rank does between
joining the others and leaving them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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
from training.pretrain.nodes import Call, Meeting, answer_file, called, meeting_of_environment, ranks_a_node
from training.pretrain.profiling import record_collectives
from training.pretrain.progress import relayed_events
from training.processes import die_with_parent, error_of, signal_name

PEER_GRACE_S = 2.0  # the launcher looks every 0.1 s

Work = Callable[[Request, Ranks, str], Outcome]  # the string: why the ranks were started again, if they were


def launch_ranks(request: Request, spec: LoopSpec, work: Work) -> Outcome:
    """Do `work` on as many ranks as the spec says, here or on several machines; what rank 0 answers."""
    meeting = meeting_of_environment()
    if meeting is None:
        with tempfile.TemporaryDirectory(prefix="nightmill-ranks-") as failures:
            config = _config_of(spec, failures, spec.ranks)
            return _outcome(_launch(config, request, spec, work, Path(failures))[0])
    ranks_a_node(spec.ranks, meeting.nodes)
    shared = Path(request.out) / "scratch" / "nodes"
    shutil.rmtree(shared, ignore_errors=True)  # of an earlier start
    shared.mkdir(parents=True)
    with called(meeting, request) as call:
        answers = launch_share(call, meeting, type(spec), work)
    return _outcome(answers[0] if 0 in answers else json.loads(answer_file(shared).read_text()))


def launch_share(call: Call, meeting: Meeting, kind: type[LoopSpec], work: Work) -> dict[int, dict[str, Any]]:
    """This machine's share of the ranks of a call, with those of the other machines; what each rank here answers."""
    spec = kind.model_validate(call.request.spec)
    with tempfile.TemporaryDirectory(prefix="nightmill-ranks-") as logs:
        config = _config_of(spec, logs, ranks_a_node(spec.ranks, meeting.nodes))
        config.min_nodes = config.max_nodes = meeting.nodes
        config.run_id, config.rdzv_endpoint, config.local_addr = call.run, meeting.endpoint, meeting.own_address
        config.rdzv_configs = config.rdzv_configs | {"is_host": False}  # the store is open already
        return _launch(config, call.request, spec, work, Path(call.shared))


def _launch(
    config: LaunchConfig, request: Request, spec: LoopSpec, work: Work, failures: Path
) -> dict[int, dict[str, Any]]:
    """The launcher is torch elastic, which torchrun itself calls. On CPU the ranks are forked from this process, which has
    the libraries loaded and has run no operation yet; after CUDA has started a fork is not safe, so they are spawned.

    failures: folder in which ranks say why they failed, and, of several machines, the first rank what it answers.
    """
    # A spawned rank, and one of another machine, does not inherit the answer's file descriptor: its events are passed on from
    # the file they are in.
    apart = torch.cuda.is_available() or config.max_nodes > 1
    relay = relayed_events(Path(request.out) / "scratch" / "events.jsonl") if apart else contextlib.nullcontext()
    launch = elastic_launch(config, _rank)
    keep_answer = config.max_nodes > 1
    try:
        with relay:
            answers: dict[int, dict[str, Any]] = launch(
                request.model_dump_json(), spec.parallel.offload, work, os.getpid(), str(failures), keep_answer
            )
    except ChildFailedError as err:
        raise _crash_of(err, _failure_file(str(failures), spec.max_restarts)) from err
    return answers


def _outcome(answer: dict[str, Any]) -> Outcome:
    if "failure" in answer:
        raise error_of(Failure.model_validate(answer["failure"]))
    return Outcome.model_validate(answer["outcome"])


def _config_of(spec: LoopSpec, logs: str, ranks: int) -> LaunchConfig:
    """All ranks on this machine. logs: a folder for the launcher's own files, which it would else leave in the system's folder
    for such."""
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="nightmill",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port on loopback
        local_addr="localhost",
        max_restarts=spec.max_restarts,
        monitor_interval=0.1,
        start_method="spawn" if torch.cuda.is_available() else "fork",
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


def _rank(
    request_json: str, offload: bool, work: Work, launcher: int, failures: str, keep_answer: bool
) -> dict[str, Any]:
    """One rank. Returns {"outcome": ...} (of rank 0) or {"failure": ...}, which all ranks reach together.

    An error of this rank alone is left in a file of the folder `failures` and ends the rank. One that only says that a
    peer is gone waits a moment, so that the launcher sees the peer's end first and reports that; SIGTERM is the launcher
    itself stopping this rank because a peer ended, so it is no failure of this one either.
    """
    die_with_parent(launcher)
    restart = num_restarts()
    try:
        why = _why_restarted(_failure_file(failures, restart - 1))
        answer = work_as_rank(Request.model_validate_json(request_json), offload, work, why)
        if keep_answer and os.environ["RANK"] == "0":  # which may not be on the machine that is asked
            answer_file(Path(failures)).write_text(json.dumps(answer))
        return answer
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
