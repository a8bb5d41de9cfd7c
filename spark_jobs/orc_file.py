"""An ORC file read by a child process, so that damage which ends the reader costs one stripe and not a task of Spark."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pyarrow as pa
from pyarrow import ipc

from spark_jobs import orc_footer, reader_process

if TYPE_CHECKING:
    from spark_jobs import orc_worker  # noqa: F401  a step's fingerprint follows imports, and the worker reads the rows

SCHEMA = -1  # in the place of a stripe
# a damaged stripe can show memory that nobody wrote to: glibc fills it (mallopt(3)), so that each reading shows the same
SAME_GARBAGE = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_PERTURB_": "165"}


class OrcFile:
    """A file in parts, its stripes. `first_rows`: the number of the first row of each.

    Raises: OSError if it is no ORC file, or cannot be opened.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        message = reader().answer(file, SCHEMA, "")
        schema = ipc.read_schema(pa.py_buffer(message))
        self.schema: pa.Schema = schema.remove_metadata()
        sizes = self._sizes(int(schema.metadata[b"stripes"]))
        self.first_rows = [0, *accumulate(sizes)][: len(sizes)]

    def _sizes(self, num_stripes: int) -> list[int]:
        try:
            return [stripe.num_rows for stripe in orc_footer.stripes(self._file)]
        except ValueError:  # a compression that is not unpacked there
            if not self.schema.names:
                return []
            some = self.schema.names[0]
            return [sum(map(len, self.batches(part, some))) for part in range(num_stripes)]

    def batches(self, part: int, name: str) -> Iterator[pa.Array]:
        """The column of a part. Raises: OSError; the next part is read by a new process then."""
        with ipc.open_stream(pa.py_buffer(reader().answer(self._file, part, name))) as stream:
            yield from (batch.column(0) for batch in stream)


@cache
def reader() -> Reader:
    """One for this process; its child starts with the first file."""
    return Reader()


class Reader:
    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def answer(self, file: Path, stripe: int, column: str) -> bytes:
        """See orc_worker. Raises: OSError if the file is damaged there, or the child ended."""
        child = self._child = self._child or reader_process.start("orc_worker.py", SAME_GARBAGE)
        assert child.stdin is not None
        assert child.stdout is not None
        asked = {"file": str(file.absolute()), "stripe": stripe, "column": column}
        try:
            child.stdin.write(json.dumps(asked).encode() + b"\n")
            child.stdin.flush()
            failed = _exactly(child.stdout, 1) != b"\0"
            answer = _exactly(child.stdout, int.from_bytes(_exactly(child.stdout, 8)))
        except (OSError, EOFError) as err:
            raise OSError(f"the ORC reader ended with {self.close()}") from err
        if failed:
            raise OSError(answer.decode())
        return answer

    def close(self) -> int | None:
        """Kill the child; returns what it ended with."""
        child, self._child = self._child, None
        return None if child is None else reader_process.end(child)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
