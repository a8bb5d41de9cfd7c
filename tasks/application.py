"""Ask a long-lived child process for work: `python -m spark_jobs.run` and `python -m training.run`.

One such process serves several steps, because starting one costs more than many steps (a JVM, or `import torch`).
Each step stays separately retryable: if the process dies, the next request starts another.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

from spark_jobs.errors import ERRORS, JobCrashed, NightmillError
from spark_jobs.requests import ANSWER_FD, Outcome, Request
from tasks.child import Child

AppName = Literal["spark", "torch"]
MODULES: dict[AppName, str] = {"spark": "spark_jobs.run", "torch": "training.run"}

Listener = Callable[[dict[str, Any]], None]


class Application:
    """One application process, started on first use (or early by `start`, to overlap its imports with other work)."""

    def __init__(self, name: AppName, logs: Path, on_line: Callable[[str], None] | None = None) -> None:
        self.name = name
        self._log = logs / f"{name}.log"
        self._on_line = on_line
        self._child: Child | None = None
        self._answers = -1
        self._buffer = b""

    def start(self) -> None:
        if self._child is not None and self._child.is_alive():
            return
        self.close()
        reading, writing = os.pipe()
        try:
            self._child = Child(
                [sys.executable, "-m", MODULES[self.name]],
                self._log,
                {ANSWER_FD: str(writing)},
                self._on_line,
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        self._answers, self._buffer = reading, b""

    def family(self) -> list[psutil.Process]:
        return self._child.family() if self._child else []

    def ask(self, request: Request, deadline_s: float, on_event: Listener | None = None) -> Outcome:
        """Send one request and wait for its outcome.

        Raises: the error the job raised (by its class in `spark_jobs.errors`); JobCrashed if the process died or the
        deadline passed; in both those cases the process is stopped and nothing of it is left.
        """
        self.start()
        assert self._child is not None
        assert self._child.process.stdin is not None
        try:
            self._child.process.stdin.write(request.model_dump_json().encode() + b"\n")
            self._child.process.stdin.flush()
            return self._wait(request, time.monotonic() + deadline_s, deadline_s, on_event)
        except BrokenPipeError as err:
            raise self._crashed(request, "died") from err
        except NightmillError:
            raise
        except BaseException:  # cancelled: whatever the job is doing must stop with us
            self.close()
            raise

    def close(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            os.close(self._answers)
            child.stop()

    def _wait(self, request: Request, until: float, deadline_s: float, on_event: Listener | None) -> Outcome:
        while True:
            line = self._read_line(until)
            if line is None:
                raise self._crashed(
                    request, "died" if time.monotonic() < until else f"passed its deadline of {deadline_s:.0f} s"
                )
            answer = json.loads(line)
            if "event" in answer:
                if on_event:
                    on_event(answer["event"])
            elif "outcome" in answer:
                return Outcome.model_validate(answer["outcome"])
            else:
                raise _error_of(answer["failure"], request.job, self._log)

    def _read_line(self, until: float) -> bytes | None:
        """The next line from the child; None at end of file or when the deadline has passed."""
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, min(1.0, until - time.monotonic())))
            if ready:
                chunk = os.read(self._answers, 65536)
                if not chunk:
                    return None
                self._buffer += chunk
            elif time.monotonic() >= until:
                return None
            elif self._child is None or not self._child.is_alive():
                # a descendant may still hold the pipe open after the process itself was killed
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _crashed(self, request: Request, what: str) -> JobCrashed:
        child = self._child
        assert child is not None
        self.close()  # which waits for what the process still said to be read
        return JobCrashed(f"job {request.job}: its process {what}; log {self._log}, last lines:\n{child.last_lines()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _error_of(failure: dict[str, str], job: str, log: Path) -> NightmillError:
    known = ERRORS.get(failure["error"])
    if known is not None:
        return known(failure["message"])
    return NightmillError(
        f"job {job} failed: {failure['error']}: {failure['message']}; log {log}\n{failure.get('traceback', '')}".rstrip()
    )
