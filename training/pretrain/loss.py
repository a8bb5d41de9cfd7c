"""The one loss: cross entropy summed over real targets, divided by their number over all ranks and micro-batches.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # what torch's cross entropy skips


def targets_of(labels_BT: Tensor) -> Tensor:
    """Shift labels one to the left: position t predicts the token at t+1, the last position predicts nothing.

    This is the only place that shifts. In/out int64 (B, T), IGNORED where there is nothing to predict.
    """
    targets_BT = torch.full_like(labels_BT, IGNORED)
    targets_BT[:, :-1] = labels_BT[:, 1:]
    return targets_BT


def count_targets(targets_BT: Tensor) -> int:
    """Number of real targets, counted after the shift: a row of 4 labels has 3."""
    return int((targets_BT != IGNORED).sum())


def sum_cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum of the cross entropy over real targets, in nats, in at least fp32; 0 with zero gradients if there is none."""
    if logits_BTV.dtype in (torch.float16, torch.bfloat16):
        logits_BTV = logits_BTV.float()
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum", ignore_index=IGNORED)


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """All-reduce a few numbers in float64 over the default process group."""
    totals = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return totals.tolist()
