"""Context parallel: each rank has a part of every sequence and gathers the keys and values of the rest.

A sequence is cut into 2 x cp pieces and rank r takes piece r and piece 2 cp - 1 - r: under a causal mask early positions
have little to do and late ones much, and this gives every rank the same (Llama 3, arXiv:2407.21783, section 3.3.2).
Masks are whole: documents packed into one sequence do not see each other, on whatever ranks they lie. torch's own ring
attention is causal only, so it is not used here.
Shapes: B sequences, H heads, T tokens, S tokens of this rank (T / cp), D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

NAME = "context_parallel"


def places_of(rank: int, cp: int, seq_len: int) -> Tensor:
    """Places in the sequence of a rank's tokens, ascending. int64 (S,)"""
    pieces = torch.arange(seq_len).chunk(2 * cp)
    return torch.cat([pieces[rank], pieces[2 * cp - 1 - rank]])


def gathered_places(cp: int, seq_len: int) -> Tensor:
    """Places of all tokens in the order in which ranks' keys are laid side by side. int64 (T,)"""
    return torch.cat([places_of(rank, cp, seq_len) for rank in range(cp)])


class GatherSequence(torch.autograd.Function):
    """(B, H, S, D) of each rank -> (B, H, T, D) on all; backward sums what every rank's queries ask of a key."""

    @staticmethod
    def forward(ctx: Any, part_BHSD: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.shape = group, part_BHSD.shape
        size = dist.get_world_size(group)
        side_by_side = part_BHSD.new_empty(size * part_BHSD.shape[0], *part_BHSD.shape[1:])
        dist.all_gather_single(side_by_side, part_BHSD.contiguous(), group=group)
        return side_by_side.view(size, *part_BHSD.shape).movedim(0, 2).flatten(2, 3)

    @staticmethod
    def backward(ctx: Any, grad_BHTD: Tensor) -> tuple[Tensor, None]:
        size = dist.get_world_size(ctx.group)
        batch, heads, seq_len, head_size = ctx.shape
        parts = grad_BHTD.reshape(batch, heads, size, seq_len, head_size).movedim(2, 0)
        part_BHSD = grad_BHTD.new_empty(ctx.shape)
        dist.reduce_scatter_single(part_BHSD, parts.flatten(0, 1).contiguous(), group=ctx.group)
        return part_BHSD, None


def use_context_parallel(model: PreTrainedModel, group: dist.ProcessGroup) -> None:
    """Let `model` attend over the sequences that `group` shares; its mask must be (B, 1, S, T) in gathered order."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        gather: Any = GatherSequence.apply
        keys, values = gather(key, group), gather(value, group)
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, keys, values, attention_mask, **options)
        return output

    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
