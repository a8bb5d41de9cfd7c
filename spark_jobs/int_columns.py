"""Lists of integers as binary values, for columns that only pass through the JVM.

Spark turns an array into its own rows and back one element at a time, and a binary value by one copy: for the tokens of
documents, which are shuffled twice, that is most of the cost of a shuffle.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

INT_BYTES = 4


def to_binary(lists: pa.ListArray) -> pa.Array:
    """list<int32> without nulls -> binary, each element 4 bytes, little-endian."""
    sizes = lists.value_lengths().to_numpy(zero_copy_only=False) * INT_BYTES
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    values = np.ascontiguousarray(lists.flatten().to_numpy(zero_copy_only=False), "<i4")
    return pa.Array.from_buffers(pa.binary(), len(lists), [None, pa.py_buffer(offsets), pa.py_buffer(values)])


def from_binary(column: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """What `to_binary` made -> (elements int32[total], offsets int64[n + 1] in elements)."""
    sizes = pa.compute.binary_length(column).to_numpy(zero_copy_only=False) // INT_BYTES
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    if not len(column):
        return np.zeros(0, np.int32), offsets
    first = np.frombuffer(column.buffers()[1], np.int32)[column.offset]
    return np.frombuffer(column.buffers()[2], "<i4", int(offsets[-1]), int(first)), offsets


def to_lists(column: pa.Array) -> pa.ListArray:
    """What `to_binary` made -> list<int32>."""
    values, offsets = from_binary(column)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))
