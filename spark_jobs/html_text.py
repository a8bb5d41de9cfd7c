"""Pages to text with a limit of time for each, by a child process that is killed when a page does not end.

Extractors written in C or Rust cannot be interrupted from Python, and some pages take them hours (nested elements make them
quadratic) or the whole process down. A limit of time is the one thing in ingest that depends on the machine.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spark_jobs import html_worker  # noqa: F401  a step's fingerprint follows imports, and the worker decides the text

READ_BYTES = 1 << 20


class PageTimeout(Exception):
    """The page took longer than it may."""


class PageFailed(Exception):
    """The page ended the extractor."""


@cache
def extractor(timeout_s: float) -> Extractor:
    """One for this process; its child starts with the first page."""
    return Extractor(timeout_s)


class Extractor:
    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def text_of(self, page: str) -> str:
        """Raises: PageTimeout, PageFailed; the next page is read by a new child then."""
        child = self._child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        encoded = page.encode("utf-8", "replace")
        try:
            child.stdin.write(len(encoded).to_bytes(8))
            child.stdin.write(encoded)
            child.stdin.flush()
            deadline = time.monotonic() + self.timeout_s
            size = int.from_bytes(self._read(child.stdout.fileno(), 8, deadline))
            return self._read(child.stdout.fileno(), size, deadline).decode()
        except (OSError, EOFError) as err:
            code = self.close()
            raise PageFailed(f"the extractor ended with {code}") from err
        except PageTimeout:
            self.close()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        worker = Path(__file__).with_name("html_worker.py")
        # -P: the worker's folder holds modules named like those of the standard library's users
        command = [sys.executable, "-P", str(worker)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def _read(self, fd: int, size: int, deadline: float) -> bytes:
        held = bytearray()
        while len(held) < size:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PageTimeout(f"no text after {self.timeout_s:g} s")
            block = os.read(fd, min(READ_BYTES, size - len(held)))
            if not block:
                raise EOFError
            held += block
        return bytes(held)

    def close(self) -> int | None:
        """Kill the child; returns what it ended with."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()
        code = child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was still to be written to a dead child
                    stream.close()
        return code
