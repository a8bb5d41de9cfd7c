"""The one loss: cross entropy summed over real targets, divided by their number over all ranks and micro-batches.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from training.loop_spec import LossSpec

PLAIN = LossSpec()
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


def sum_cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, spec: LossSpec = PLAIN) -> Tensor:
    """Sum of the loss over real targets, in nats, in at least fp32; 0 with zero gradients if there is none.

    Label smoothing (arXiv:1512.00567) mixes in the mean cross entropy with all V tokens. z_loss adds a multiple of the
    squared logarithm of the softmax's denominator (PaLM, arXiv:2204.02311). Both are sums over targets, so
    that accumulation and ranks do not change them (transformers#47261).
    """
    if logits_BTV.dtype in (torch.float16, torch.bfloat16):
        logits_BTV = logits_BTV.float()
    logits_NV, targets_N = logits_BTV.flatten(0, -2), targets_BT.flatten()
    loss = F.cross_entropy(
        logits_NV, targets_N, reduction="sum", ignore_index=IGNORED, label_smoothing=spec.label_smoothing
    )
    if spec.z_loss:
        normalisers_N = torch.logsumexp(logits_NV, dim=-1)
        loss = loss + spec.z_loss * normalisers_N.square().masked_fill(targets_N == IGNORED, 0).sum()
    return loss


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """All-reduce a few numbers in float64 over the default process group."""
    totals = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return totals.tolist()


def from_first_rank(values: Sequence[float], device: torch.device) -> list[float]:
    """Rank 0's numbers, on all: sums over a mesh of two dimensions may differ in the last bit between ranks."""
    told = torch.tensor(list(values), dtype=torch.float64, device=device)
    dist.broadcast(told, 0)
    return told.tolist()
