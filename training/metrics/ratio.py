"""Part of a whole, undefined where there is no whole."""

from __future__ import annotations

import numpy as np


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole by element, NaN where the whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    undefined = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    result: np.ndarray = np.divide(part, whole, out=undefined, where=whole != 0)
    return result
