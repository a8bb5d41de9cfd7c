"""The average of weights: the recursion, shards, and weights that come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from training.pretrain.ema import Average, decay_at
from training.pretrain.mesh import Ranks


def test_decay_grows_from_a_short_memory_to_the_chosen_one() -> None:
    assert [decay_at(t, 0.5) for t in (1, 2, 8, 9, 1000)] == [2 / 11, 3 / 12, 0.5, 0.5, 0.5]


def test_average_is_the_recursion() -> None:
    """Weight 1, then 2 and 3: (2/11) 1 + (9/11) 2, then 3/12 of that + (9/12) 3."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    average = Average(model, 0.9)
    for t, value in ((1, 2.0), (2, 3.0)):
        nn.init.constant_(model.weight, value)
        average.update(model, t)
    first = 2 / 11 + 9 / 11 * 2
    assert average.shadow["weight"].item() == pytest.approx(3 / 12 * first + 9 / 12 * 3, abs=1e-14)


def test_average_of_bf16_weights_is_kept_in_fp32() -> None:
    model = nn.Linear(2, 2).bfloat16()
    assert {t.dtype for t in Average(model, 0.9).shadow.values()} == {torch.float32}


def test_weights_come_back_to_the_bit_also_after_an_error() -> None:
    model = nn.Linear(3, 3)
    before = [p.detach().clone() for p in model.parameters()]
    average = Average(model, 0.9)
    for tensor in average.shadow.values():
        tensor.zero_()

    def use_and_fail() -> None:
        with average.in_place(model):
            assert not any(p.any() for p in model.parameters())
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError):
        use_and_fail()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_average_of_shards_is_the_shards_of_the_average(run_ranks) -> None:
    def averaged(ranks: Ranks) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(3, 5, bias=False).double()
        fully_shard(model, mesh=init_device_mesh("cpu", (ranks.world_size,)))
        average = Average(model, 0.9)
        with torch.no_grad():
            model.weight.mul_(2)
        average.update(model, 1)
        assert set(average.state()) == {"ema.weight"}
        return average.shadow["weight"].full_tensor()

    one, two = run_ranks(averaged, 2)
    torch.manual_seed(0)
    weight = nn.Linear(3, 5, bias=False).double().weight
    assert torch.equal(one, two)
    torch.testing.assert_close(one, (2 / 11 + 9 / 11 * 2) * weight.detach())
