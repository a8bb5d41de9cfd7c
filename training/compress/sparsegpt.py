"""SparseGPT: zeros whose error the weights not yet visited make up for (arXiv 2301.00774, algorithm 1).

Shapes: O outputs, I inputs, C columns of a block. A block is worked on transposed: a column of the weight is then a row
in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.compress.hessian import Solve, inverse_factor
from training.compress.masks import KEPT_OF, lowest, lowest_in_groups, magnitude_mask, num_dropped
from training.compress_spec import PruneSpec

BLOCK_COLUMNS = 128  # a multiple of every pattern's group


def sparsegpt(
    weight_OI: Tensor, hessian_II: Tensor, spec: PruneSpec, block_columns: int = BLOCK_COLUMNS
) -> tuple[Tensor, Tensor, Solve]:
    """Pruned weight (O, I) fp32, mask (O, I), how it was solved.

    The score of a weight is w^2 / u^2, u its input's diagonal of the factor U of H^-1. Unstructured: the lowest of a
    block over all outputs together; so many that all blocks up to here have floor(weights * sparsity). n:m: the lowest
    of a group of m, of weights as they are when the first of them is reached. Errors within a block move at once, those
    to later blocks when it is done: the same numbers as column by column.
    Weights of inputs that were always zero become 0 whether or not the mask has them. Without a factor: the mask of
    magnitude, weights otherwise as they were.
    """
    factor = inverse_factor(hessian_II, spec.damping)
    if factor.upper_II is None:
        mask_OI = magnitude_mask(weight_OI, spec)
        return weight_OI.float().masked_fill(mask_OI, 0.0), mask_OI, Solve(factor.damping, fallback=True)
    upper_II, num_inputs = factor.upper_II, weight_OI.shape[1]
    weight_IO = weight_OI.float().T.contiguous().masked_fill_(factor.dead_I[:, None], 0.0)
    mask_IO = torch.zeros_like(weight_IO, dtype=torch.bool)
    for start in range(0, num_inputs, block_columns):
        end = min(start + block_columns, num_inputs)
        mask_CO, errors_CO = _prune_block(weight_IO, upper_II[start:end, start:end], start, spec)
        mask_IO[start:end] = mask_CO
        weight_IO[end:].addmm_(upper_II[start:end, end:].T, errors_CO, alpha=-1)
    return weight_IO.T.contiguous(), mask_IO.T.contiguous(), Solve(factor.damping, fallback=False)


def _prune_block(weight_IO: Tensor, upper_CC: Tensor, start: int, spec: PruneSpec) -> tuple[Tensor, Tensor]:
    """Prune the block's columns in place; its mask and the errors that later blocks make up for, both (C, O)."""
    weight_CO = weight_IO[start : start + len(upper_CC)]
    errors_CO = torch.empty_like(weight_CO)
    scale_C1 = upper_CC.diagonal()[:, None].square()
    grouped = spec.pattern != "unstructured"
    if grouped:
        mask_CO = torch.zeros_like(weight_CO, dtype=torch.bool)
        size = KEPT_OF[spec.pattern][1]
    else:
        scores_CO = weight_CO.square() / scale_C1
        count = _num_of_block(weight_IO.shape[1], start, start + len(upper_CC), spec.sparsity)
        mask_CO = lowest(scores_CO.reshape(1, -1), count).reshape(scores_CO.shape)
    for column, step in enumerate(upper_CC.diagonal().tolist()):
        if grouped and column % size == 0:
            group = slice(column, column + size)
            mask_CO[group] = lowest_in_groups((weight_CO[group].square() / scale_C1[group]).T, spec.pattern).T
        torch.mul(weight_CO[column], mask_CO[column], out=errors_CO[column]).div_(step)
        weight_CO[column + 1 :].addr_(upper_CC[column, column + 1 :], errors_CO[column], alpha=-1)
    weight_CO.masked_fill_(mask_CO, 0.0)
    return mask_CO, errors_CO


def _num_of_block(num_outputs: int, start: int, end: int, sparsity: float) -> int:
    """Zeros of columns start to end: what all columns up to `end` have, less what those before have."""
    return num_dropped(num_outputs * end, sparsity) - num_dropped(num_outputs * start, sparsity)
