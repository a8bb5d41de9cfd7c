"""The narrowest floating-point type that holds a tensor's values exactly: what the unquantised rest is stored as."""

from __future__ import annotations

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)  # tried in this order: a model trained in bfloat16 comes out of float32 so


def narrowest(value: Tensor) -> Tensor:
    """`value` in 16 bits if every number survives the way there and back, otherwise as it is.

    Loaders cast to the dtype that config.json names, so what is loaded is what was given.
    """
    if value.dtype not in (torch.float32, torch.float64):
        return value
    for dtype in NARROW:
        narrow = value.to(dtype)
        if torch.equal(narrow.to(value.dtype), value):
            return narrow
    return value
