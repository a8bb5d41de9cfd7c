"""Work of torch beside the engine, in a thread that ends with it.

libgomp keeps a pool of threads for each thread that ever computed. Once there are more of them than cores, its threads no longer
spin while they wait for each other but sleep, in every pool, and a small model writes less than half as fast (docs/serving.md). A
pool goes with its thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_own_thread(work: Callable[[], T]) -> T:
    """Blocks until the work is done. Raises: what it raises."""
    with ThreadPoolExecutor(1, thread_name_prefix="own") as thread:
        return thread.submit(work).result()
