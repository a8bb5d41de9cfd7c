"""Arrow string columns as the flat byte and offset arrays that compiled kernels read, and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.compiled import compiled

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]


def utf8_buffers(texts: pa.Array | pa.ChunkedArray) -> tuple[Bytes, Offsets]:
    """(bytes uint8[size], offsets int64[n + 1]) of a string column without nulls; text i is bytes[offsets[i]:offsets[i + 1]]."""
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    array = array.cast(pa.large_string())
    assert array.null_count == 0, "a null text must be rejected where it is read"
    _, offsets, data = array.buffers()
    numbers = (
        np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        if offsets
        else np.zeros(1, np.int64)
    )
    return np.frombuffer(data or b"\0", np.uint8), numbers.astype(np.int64)


def utf8_array(data: Bytes, offsets: Offsets) -> pa.Array:
    """The string column (pa.string) with these bytes and offsets. Raises: pa.ArrowInvalid above 2 GiB."""
    large = pa.Array.from_buffers(
        pa.large_string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    return large.cast(pa.string())


@compiled
def code_point(data: Bytes, at: int) -> tuple[np.int64, int]:
    """(code point, bytes it takes) of the valid UTF-8 at `at`."""
    first = np.int64(data[at])
    if first < 0x80:
        return first, 1
    if first < 0xE0:
        return ((first & 0x1F) << 6) | (np.int64(data[at + 1]) & 0x3F), 2
    if first < 0xF0:
        middle = (np.int64(data[at + 1]) & 0x3F) << 6
        return ((first & 0x0F) << 12) | middle | (np.int64(data[at + 2]) & 0x3F), 3
    high = ((np.int64(data[at + 1]) & 0x3F) << 12) | ((np.int64(data[at + 2]) & 0x3F) << 6)
    return ((first & 0x07) << 18) | high | (np.int64(data[at + 3]) & 0x3F), 4
