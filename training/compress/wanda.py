"""Wanda: weights that matter least are small where inputs are small (arXiv 2306.11695, section 3). Nothing else changes."""

from __future__ import annotations

from torch import Tensor

from training.compress.masks import lowest, lowest_in_groups, num_dropped
from training.compress_spec import PruneSpec


def wanda_mask(weight_OI: Tensor, norm_I: Tensor, spec: PruneSpec) -> Tensor:
    """Lowest |weight| * norm of each output's own row, or of each group of an n:m pattern. True: becomes 0.

    norm_I: L2 norm of each input over tokens, not its square; any common factor cancels.
    """
    scores_OI = weight_OI.abs() * norm_I
    if spec.pattern != "unstructured":
        return lowest_in_groups(scores_OI, spec.pattern)
    return lowest(scores_OI, num_dropped(scores_OI.shape[1], spec.sparsity))
