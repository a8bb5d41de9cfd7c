"""How the C library hands out host memory: what a rank freed in one step is kept for the next.

A tensor of 32 MB or more (logits of 1,024 tokens over 8,192 words) is more than glibc's heap may ever hold of itself: it
is mapped anew each time, unmapped when freed, and the kernel faults its pages in one by one, at 0.9 GB/s on the
machine of docs/benchmarks-train.md. There a training of whole logits reached 10.7 thousand tokens/s with it, and 14.9
thousand without. No number changes: only addresses do.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
NEVER = -1  # as a size: the largest there is
SET_BY_USER = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """From now on this process takes large blocks from the heap, and gives none of it back before it ends.

    Its resident memory stays at the largest it has needed at once, and some room between blocks. Returns whether that is
    so: not without glibc, nor where the environment says otherwise.
    """
    if sys.platform != "linux" or any(name in os.environ for name in SET_BY_USER):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, NEVER))
