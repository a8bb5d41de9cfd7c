"""Two ranks against one, in float64: the same numbers, or the parallel code is wrong."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from spark_jobs.errors import TrainingError
from training.pretrain import checkpointing
from training.pretrain.model import model_config, new_model
from training.pretrain.optimizer import make_optimizer
from training.pretrain.parallel import Ranks, shard_model
from training.pretrain.sequence_order import corpus_row_groups
from training.pretrain.token_shards import Sequences
from training.pretrain.trainer import rank_positions, train_step
from training.specs import ModelSpec, OptimizerSpec

SEQUENCES = 6  # a step; micro-batches of 2 leave a tail of 1 on two ranks


def train_float64(world, ranks: Ranks, num_steps: int, micro_batch: int) -> dict[str, Any]:
    """Losses, norms and final weights of a tiny model; documents of unequal length give ranks unequal targets."""
    torch.set_default_dtype(torch.float64)
    try:
        spec = ModelSpec(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=24)
        model = new_model(model_config(spec, world.tokenizer, 32), 0)
        assert next(model.parameters()).dtype == torch.float64
        shard_model(model, ranks)
        optimizer = make_optimizer(model, OptimizerSpec(learning_rate=1e-2))
        sequences = Sequences(corpus_row_groups(world.corpus), 32, 0, 0.5, seed=0)
        curve = []
        for step in range(num_steps):
            batches = list(sequences.micro_batches(rank_positions(step, SEQUENCES, ranks), micro_batch))
            facts = train_step(model, optimizer, batches, 1e-2, 0.5, ranks)
            curve.append((facts.loss, facts.grad_norm, facts.tokens))
        weights = {n: (p.full_tensor() if isinstance(p, DTensor) else p).tolist() for n, p in model.named_parameters()}
    finally:
        torch.set_default_dtype(torch.float32)
    return {"curve": curve, "weights": weights}


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 2), (2, 2), (2, 3)])
def test_ranks_and_micro_batches_give_the_numbers_of_one_rank(
    world, run_ranks, world_size: int, micro_batch: int
) -> None:
    (alone,) = run_ranks(lambda ranks: train_float64(world, ranks, 10, SEQUENCES), 1)
    split = run_ranks(lambda ranks: train_float64(world, ranks, 10, micro_batch), world_size)
    for part in split:
        for one, many in zip(alone["curve"], part["curve"], strict=True):
            assert many == pytest.approx(one, rel=1e-12)
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(torch.tensor(part["weights"][name]), torch.tensor(weight), atol=1e-9, rtol=0)


def test_a_loss_that_is_not_finite_stops_all_ranks_and_leaves_the_weights(world, run_ranks) -> None:
    """Only rank 1 meets the NaN; both must refuse the step."""

    def broken_step(ranks: Ranks) -> tuple[str, bool]:
        model = new_model(model_config(ModelSpec(hidden_size=16, num_heads=2), world.tokenizer, 32), 0)
        sequences = Sequences(corpus_row_groups(world.corpus), 32, 0, 0.5, seed=0)
        shard_model(model, ranks)
        if ranks.rank == 1:
            model.register_forward_hook(lambda module, inputs, output: _poison(output))
        before = copy.deepcopy([p.detach().to_local() for p in model.parameters()])
        batches = list(sequences.micro_batches(rank_positions(0, 4, ranks), 2))
        with pytest.raises(TrainingError) as caught:
            train_step(model, make_optimizer(model, OptimizerSpec()), batches, 1e-3, 1.0, ranks)
        after = [p.detach().to_local() for p in model.parameters()]
        return str(caught.value), all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    for message, unchanged in run_ranks(broken_step, 2):
        assert re.match(r"loss nan, gradient norm nan, learning rate 0.001", message)
        assert unchanged


def _poison(output: Any) -> Any:
    output.logits = output.logits * float("nan")
    return output


def test_checkpoint_of_two_ranks_loads_on_one(world, run_ranks, tmp_path: Path) -> None:
    config = model_config(ModelSpec(hidden_size=16, num_heads=2), world.tokenizer, 32)

    def save(ranks: Ranks) -> None:
        model = shard_model(new_model(config, 0), ranks)
        state = checkpointing.train_state(model, make_optimizer(model, OptimizerSpec()))
        for step in (3, 6, 9):
            checkpointing.save_step(tmp_path, step, state, {"identity": "a"}, ranks, keep=2)

    def load(ranks: Ranks) -> tuple[int, bool, str]:
        reference = new_model(config, 0)
        model = shard_model(new_model(config, 1), ranks)
        state = checkpointing.train_state(model, make_optimizer(model, OptimizerSpec()))
        step = checkpointing.load_newest(tmp_path, state, "a", ranks)
        same = all(
            torch.equal(a, b.full_tensor()) for a, b in zip(reference.parameters(), model.parameters(), strict=True)
        )
        with pytest.raises(TrainingError, match="another request or corpus") as caught:
            checkpointing.load_newest(tmp_path, state, "b", ranks)
        return step, same, str(caught.value)

    run_ranks(save, 2)
    assert checkpointing.complete_steps(tmp_path) == [6, 9]
    ((step, same, message),) = run_ranks(load, 1)
    assert (step, same) == (9, True)
    assert str(tmp_path) in message
