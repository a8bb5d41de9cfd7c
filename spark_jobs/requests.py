"""How a step asks a child process for work: one JSON line in, events and one answer out. Pydantic only.

Requests come on stdin. Answers go to the file descriptor named in NIGHTMILL_ANSWER_FD, so that stdout and stderr stay
plain logs. `python -m spark_jobs.run` and `python -m training.run` both call `serve`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import Field

from spark_jobs.errors import DiskFull, NightmillError
from spark_jobs.manifests import Column, Frozen

# torch's archive writer keeps no errno: a short write shows as a file that ends before the place it should have reached.
_WORDS_OF_A_FULL_DISK = re.compile(
    r"No space left on device|Disk quota exceeded"
    r"|PytorchStreamWriter failed writing|inline_container\.cc:\d+\] \. unexpected pos"
)
ANSWER_FD = "NIGHTMILL_ANSWER_FD"


class Request(Frozen):
    """One job. `inputs` maps a role to the uri of a published output; `out` is an empty (or resumable) folder."""

    job: str
    spec: dict[str, Any]
    inputs: dict[str, str] = Field(default_factory=dict)
    out: str
    night: str


class Outcome(Frozen):
    """What a job did, for the manifest: only facts that two honest runs share.

    counts: `in`, `out`, `reject.<reason>` where the step filters rows. fields: the extra fields of the handle.
    """

    num_rows: int
    format: str
    columns: tuple[Column, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    fields: dict[str, Any] = Field(default_factory=dict)


class Failure(Frozen):
    """Why a job gave no outcome; `error` is a class name of `errors.ERRORS`, or any other exception's."""

    error: str
    message: str
    traceback: str = ""


def send(kind: str, body: Any) -> None:
    """Write one line to the parent (nothing if this process was started by hand)."""
    fd = os.environ.get(ANSWER_FD)
    if fd is not None:
        os.write(int(fd), (json.dumps({kind: body}) + "\n").encode())


def failure_of(error: BaseException) -> Failure:
    if is_disk_full(error):
        place = f" writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        error = DiskFull(
            f"no space left{place}; free some space or set NIGHTMILL_HOME to a larger disk, then run again"
        )
    known = isinstance(error, NightmillError)
    return Failure(
        error=type(error).__name__,
        message=str(error),
        traceback="" if known else "".join(traceback.format_exception(error)),
    )


def is_disk_full(error: BaseException) -> bool:
    """Also true for an exception of Java or of a checkpoint that only quotes the system's words, or came of such a one."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return _WORDS_OF_A_FULL_DISK.search("".join(traceback.format_exception(error))) is not None


def answer(handle: Callable[[Request], Outcome], line: str) -> tuple[str, dict[str, Any]]:
    """Do what one request line asks. Returns ("outcome" or "failure", its fields)."""
    try:
        outcome = handle(Request.model_validate_json(line))
    except Exception as error:  # noqa: BLE001  the process boundary: all must reach the parent as an answer
        return "failure", failure_of(error).model_dump()
    return "outcome", outcome.model_dump(mode="json")


def serve(handle: Callable[[Request], Outcome], lines: Iterable[str] = sys.stdin) -> None:
    """Answer each request line until stdin closes. An exception becomes a `failure`, the next request is still taken."""
    for line in lines:
        if line.strip():
            kind, body = answer(handle, line)
            send(kind, body)
