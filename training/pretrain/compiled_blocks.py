"""Compilation of a model's blocks by torch.compile: one graph, used for every block of the same shape."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from spark_jobs.errors import RequestError

CPP_COMPILERS = ("g++", "clang++")
KERNELS = "TORCHINDUCTOR_CACHE_DIR"


def check_compiler() -> None:
    """Raises: RequestError on a machine without GPU and without a C++ compiler, which kernels for CPU are made with."""
    if not torch.cuda.is_available() and not any(shutil.which(name) for name in CPP_COMPILERS):
        raise RequestError(
            f"train.parallel.compile true wants a C++ compiler on a machine without GPU, and neither of {CPP_COMPILERS} "
            "is on the PATH: install one, or set it to false"
        )


def keep_kernels_apart(folder: Path) -> None:
    """Compiled kernels of this process go to a place of its own under `folder`, unless the user has set one.

    A C++ compiler that is killed with its rank leaves half a file, which every later process would try to load.
    """
    os.environ.setdefault(KERNELS, str(folder / f"{os.getpid()}-{time.time_ns()}"))


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """In place: around a block, torch.compile would put `_orig_mod.` into every parameter's name.

    A graph for each shape of a batch, not one for all: else a resumed run, which has seen other shapes before, could
    add up in another order than the unbroken one.
    """
    for block in blocks:
        block.compile(dynamic=False)
