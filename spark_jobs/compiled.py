"""The decorator of every compiled kernel; machine code is kept in __pycache__ and loaded by later processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call. Unsigned and signed 64-bit numbers must not meet in one expression: numba makes floats of it."""
    return cast(Callable[P, R], njit(cache=True)(function))
