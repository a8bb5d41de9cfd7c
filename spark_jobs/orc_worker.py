"""The process that reads ORC, kept apart because damaged files can end it (pyarrow 24 reads past its buffers): see orc_file.py.

A line of JSON on stdin asks for a file's schema, or for the column of a stripe. On stdout: a byte, 0 or 1, the length (8 bytes,
big-endian), and the answer as an Arrow IPC message or stream, or the words of the error.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pyarrow import ipc, orc

MEMORY_BYTES = 8 << 30  # a damaged length that asks for more ends this process, not the machine


def main() -> None:
    with contextlib.suppress(ValueError, OSError):  # the machine may allow less
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sink = sys.stdout.buffer
    for line in sys.stdin.buffer:
        try:
            failed, answer = False, answer_to(**json.loads(line))
        except (pa.ArrowException, OSError, MemoryError) as err:
            failed, answer = True, f"{type(err).__name__}: {err}".encode("utf-8", "replace")
        sink.write(bytes([failed]) + len(answer).to_bytes(8))
        sink.write(answer)
        sink.flush()


def answer_to(file: str, stripe: int, column: str) -> bytes:
    """The schema, with the number of stripes in its metadata, if `stripe` is -1: the file is opened anew then."""
    if stripe < 0:
        opened.cache_clear()
    table = opened(file)
    if stripe < 0:
        return bytes(table.schema.with_metadata({"stripes": str(table.nstripes)}).serialize())
    batch = table.read_stripe(stripe, columns=[column])
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


@lru_cache(maxsize=1)
def opened(file: str) -> Any:
    return orc.ORCFile(file)


if __name__ == "__main__":
    main()
