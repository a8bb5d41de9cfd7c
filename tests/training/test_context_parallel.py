"""Attention over sequences that two or four ranks share, against attention over whole ones."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.parity import SEQ_LEN, on_ranks, sequence_at
from training.parallel_spec import Degrees
from training.pretrain.context_parallel import GatherSequence, gathered_places, places_of
from training.pretrain.loss import count_targets, targets_of
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.micro_batch import micro_batch_of
from training.pretrain.token_shards import make_batch

CP = 2
DEGREES = Degrees(pp=1, dp_replicate=1, dp_shard=1, cp=CP, tp=1)


def test_places_give_each_rank_an_early_and_a_late_piece() -> None:
    assert places_of(0, 2, 8).tolist() == [0, 1, 6, 7]
    assert places_of(1, 2, 8).tolist() == [2, 3, 4, 5]
    assert sorted(gathered_places(4, 32).tolist()) == list(range(32))


@pytest.mark.parametrize("cp", [2, 4])
def test_ranks_of_a_sequence_have_equal_work_under_a_causal_mask(cp: int) -> None:
    work = {int((places_of(rank, cp, 64) + 1).sum()) for rank in range(cp)}
    assert len(work) == 1


def attend(ranks: Ranks) -> tuple[float, float, int, int]:
    """Largest difference of outputs and of gradients from whole attention; tokens and targets over all ranks."""
    mesh = make_mesh(ranks, DEGREES)
    batch = make_batch([sequence_at(position) for position in range(8)], SEQ_LEN, 0)
    part = micro_batch_of(batch, mesh)
    torch.manual_seed(0)
    whole = [torch.randn(8, 2, SEQ_LEN, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weight = torch.randn(8, 2, SEQ_LEN, 4, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(*whole, attn_mask=batch.attention_mask())
    gradients = torch.autograd.grad((expected * weight).sum(), whole)
    assert part.queries is not None
    query, key, value = (t.detach()[:, :, part.queries].requires_grad_() for t in whole)
    keys, values = (GatherSequence.apply(t, dist.group.WORLD) for t in (key, value))
    found = F.scaled_dot_product_attention(query, keys, values, attn_mask=part.attention_mask())
    parts = torch.autograd.grad((found * weight[:, :, part.queries]).sum(), (query, key, value))
    pairs = zip(parts, gradients, strict=True)
    counts = [count_targets(part.targets_BS), part.num_tokens]
    assert mesh.sum_once([1.0]) == [CP]
    totals = mesh.sum_once(counts)
    assert totals == [count_targets(targets_of(batch.labels_BT)), batch.num_tokens]
    return (
        float((found - expected[:, :, part.queries]).abs().max()),
        max(float((one - other[:, :, part.queries]).abs().max()) for one, other in pairs),
        *(int(total) for total in totals),
    )


def test_attention_over_shared_sequences_has_outputs_and_gradients_of_whole_ones() -> None:
    """Documents that begin on one rank and end on the other are masked like any."""
    for output, gradient, targets, tokens in on_ranks(attend, CP):
        assert output < 1e-14
        assert gradient < 1e-13
        assert 0 < targets < tokens
