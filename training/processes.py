"""Child processes of the model engine: they die with their parent, start fresh, and use a fixed number of threads."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from spark_jobs.errors import ERRORS, JobCrashed, NightmillError
from spark_jobs.requests import Failure, failure_of

THREADS = "NIGHTMILL_THREADS"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Ask the kernel to SIGKILL this process when the thread that forked it ends; die now if `parent` is gone already.

    Without it a rank outlives a launcher that was killed: launchers put their children in sessions of their own, so
    no signal to the group reaches them.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def num_threads(processes: int = 1) -> int:
    """Threads each of `processes` equal processes of this machine may use.

    The order of floating-point sums depends on it, so it is fixed by NIGHTMILL_THREADS or by the number of cores.
    """
    setting = os.environ.get(THREADS)
    return int(setting) if setting else max(1, (os.cpu_count() or 1) // processes)


def signal_name(number: int) -> str:
    return signal.Signals(number).name


def in_fresh_process(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run `function` in a forked child and return its JSON-able result.

    The caller must not have run a torch operation yet: the OpenMP pool does not survive a fork.
    Raises: the child's own error if Nightmill knows its class, JobCrashed if the child died without an answer.
    """
    (result,) = in_fresh_processes(function.__name__, [function])
    return result


def in_fresh_processes(name: str, functions: Sequence[Callable[[], dict[str, Any]]]) -> list[dict[str, Any]]:
    """As `in_fresh_process`, side by side; results in the order of the functions. All have ended when this returns or raises."""
    answers = [os.memfd_create("answer") for _ in functions]
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    children = []
    for function, answer in zip(functions, answers, strict=True):
        child = os.fork()
        if child == 0:
            _answer_and_exit(function, answer, parent)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    texts = [os.pread(answer, os.fstat(answer).st_size, 0).decode() for answer in answers]
    for answer in answers:
        os.close(answer)
    return [_result_of(name, end, text) for end, text in zip(ends, texts, strict=True)]


def _result_of(name: str, end: int, text: str) -> dict[str, Any]:
    if os.WIFSIGNALED(end):
        raise JobCrashed(f"{name} was killed by {signal_name(os.WTERMSIG(end))}; run the step again")
    body: dict[str, Any] = json.loads(text)
    if "failure" in body:
        raise error_of(Failure.model_validate(body["failure"]))
    result: dict[str, Any] = body["result"]
    return result


def _answer_and_exit(function: Callable[[], dict[str, Any]], answer: int, parent: int) -> NoReturn:
    def work() -> int:
        die_with_parent(parent)
        try:
            body: dict[str, Any] = {"result": function()}
        except Exception as error:  # noqa: BLE001 the process boundary: the parent raises it again
            body = {"failure": failure_of(error).model_dump()}
        os.write(answer, json.dumps(body).encode())
        return 0

    work_and_exit(work)


def work_and_exit(work: Callable[[], int]) -> NoReturn:
    """In a forked child: end with the code that `work` returns, or with a traceback and 1; nothing falls through into the
    parent's code."""
    code = 1
    try:
        code = work()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def error_of(failure: Failure) -> NightmillError:
    """The exception a failed child meant. A class Nightmill does not know becomes a plain NightmillError."""
    cls = ERRORS.get(failure.error)
    if cls is not None:
        return cls(failure.message)
    return NightmillError(f"{failure.error}: {failure.message}\n{failure.traceback}")
