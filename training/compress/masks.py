"""Which weights become zero: exact counts, ties to the lower index. A mask is True where the weight becomes 0.

Shapes: O outputs, I inputs, R rows that are compared within themselves, N entries of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from spark_jobs.errors import RequestError
from training.compress_spec import PruneSpec

KEPT_OF = {"2:4": (2, 4), "4:8": (4, 8)}  # n:m keeps n of m consecutive inputs


def num_dropped(count: int, sparsity: float) -> int:
    """floor(count * sparsity) of the share as it is written: 0.29 of 100 are 29, though 100 * 0.29 is 28.999."""
    return math.floor(count * Fraction(repr(sparsity)))


def lowest(scores_RN: Tensor, count: int) -> Tensor:
    """Mask (R, N) of exactly the `count` lowest scores of each row; of equal ones the first.

    A selection, not a sort: a whole layer may be one row.
    """
    if count == 0:
        return torch.zeros_like(scores_RN, dtype=torch.bool)
    last_R1 = scores_RN.kthvalue(count, dim=-1, keepdim=True).values
    below = scores_RN < last_R1
    ties = scores_RN == last_R1
    rest_R1 = count - below.sum(-1, keepdim=True)
    return below | (ties & (ties.cumsum(-1, dtype=torch.int32) <= rest_R1))


def lowest_in_groups(scores_OI: Tensor, pattern: str) -> Tensor:
    """Mask (O, I) of the m - n lowest of every m consecutive inputs."""
    kept, size = KEPT_OF[pattern]
    return lowest(scores_OI.reshape(-1, size), size - kept).reshape(scores_OI.shape)


def magnitude_mask(weight_OI: Tensor, spec: PruneSpec) -> Tensor:
    """Smallest weights of the whole layer, or of each group of an n:m pattern."""
    scores_OI = weight_OI.abs()
    if spec.pattern != "unstructured":
        return lowest_in_groups(scores_OI, spec.pattern)
    count = num_dropped(scores_OI.numel(), spec.sparsity)
    return lowest(scores_OI.reshape(1, -1), count).reshape(scores_OI.shape)


def check_pattern(num_inputs: Mapping[str, int], pattern: str) -> None:
    """`num_inputs` by name of a layer. Raises: RequestError with all layers whose rows are no whole groups."""
    if pattern == "unstructured":
        return
    size = KEPT_OF[pattern][1]
    odd = [f"{name} ({count} inputs)" for name, count in num_inputs.items() if count % size]
    if odd:
        raise RequestError(
            f"prune.pattern {pattern} wants inputs in whole groups of {size}; not so: {', '.join(odd)}. "
            "Choose prune.pattern unstructured, or a model whose widths are multiples"
        )


def num_zeros(weight_OI: Tensor) -> int:
    return weight_OI.numel() - int(weight_OI.count_nonzero())


def valid_groups(weight_OI: Tensor, pattern: str) -> float:
    """Share of the groups of an n:m pattern that hold m - n zeros or more."""
    kept, size = KEPT_OF[pattern]
    filled = weight_OI.reshape(-1, size).count_nonzero(-1)
    return float((filled <= kept).double().mean())
