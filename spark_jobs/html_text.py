"""Pages to text with a limit of time for each, by a child process that is killed when a page does not end.

Extractors written in C or Rust cannot be interrupted from Python, and some pages take them hours (nested elements make them
quadratic) or the whole process down. A limit of time is the one thing in ingest that depends on the machine.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from functools import cache
from typing import TYPE_CHECKING

from spark_jobs import reader_process

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
        child = self._child = self._child or reader_process.start("html_worker.py")
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
        return None if child is None else reader_process.end(child)
