"""Every layout of `make parity` against one rank, in float64, over fewer steps; and what a step refuses."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from benchmarks.parity import LAYOUTS, ONE_RANK, Layout, batches_at, on_ranks, tiny_llama, train, write_between_markers
from training.loop_spec import OptimizerSpec
from training.parallel_spec import ParallelSpec
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.optimizer import clip_gradients, make_optimizer
from training.pretrain.parallel import parallelize
from training.pretrain.pipeline import split_blocks
from training.pretrain.trainer import train_step

NUM_STEPS = 3
CASES = [(layout, tied) for layout in LAYOUTS for tied in (False, True)]
Result = dict[str, Any]


@functools.cache
def alone(tied: bool) -> Result:
    """One rank, one micro-batch a step."""
    (result,) = on_ranks(lambda ranks: train(ONE_RANK, ranks, tied, NUM_STEPS), 1)
    return result


@functools.cache
def together(world_size: int) -> list[dict[tuple[str, bool], Result]]:
    """Of each rank: every layout of that many ranks, one after the other in the same processes."""

    def train_all(ranks: Ranks) -> dict[tuple[str, bool], Result]:
        return {(x.name, tied): train(x, ranks, tied, NUM_STEPS) for x, tied in CASES if x.ranks == world_size}

    return on_ranks(train_all, world_size)


@pytest.mark.parametrize(("layout", "tied"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_layout_gives_the_losses_norms_weights_and_moments_of_one_rank(layout: Layout, tied: bool) -> None:
    results = [rank[layout.name, tied] for rank in together(layout.ranks)]
    for result in results:
        assert result["curve"] == results[0]["curve"], "ranks must agree bit for bit, or they take other decisions"
        np.testing.assert_allclose(result["curve"], alone(tied)["curve"], rtol=1e-12)
    assert any(norm > 0.5 for _, norm, _ in results[0]["curve"]), "clipping must have work to do"
    expected, found = alone(tied)["state"], results[0]["state"]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", ["FSDP2", "FSDP2 x TP", "FSDP2 x PP"])
def test_model_sharded_block_by_block_gives_the_numbers_of_one_rank(name: str) -> None:
    """As large models are; with weights gathered again in backward, and activations computed again."""
    (layout,) = (layout for layout in LAYOUTS if layout.name == name)
    layout = dataclasses.replace(layout, parallel=layout.parallel | {"activation_checkpointing": "full"})
    results = on_ranks(lambda ranks: train(layout, ranks, True, NUM_STEPS, reshard_from=0), layout.ranks)
    np.testing.assert_allclose(results[0]["curve"], alone(True)["curve"], rtol=1e-12)


def test_loss_that_is_not_finite_stops_all_ranks_and_leaves_the_weights() -> None:
    """Only rank 1 meets the NaN; both must refuse the step."""

    def broken_step(ranks: Ranks) -> tuple[str, bool]:
        layout = Layout("", 2, {}, 2)
        mesh = make_mesh(ranks, layout.spec.degrees(2))
        model = parallelize(tiny_llama(tied=True), mesh, layout.spec)
        if ranks.rank == 1:
            model.module.register_forward_hook(lambda module, inputs, output: _poison(output))
        before = copy.deepcopy([p.detach().to_local() for p in model.module.parameters()])
        optimizer = make_optimizer(model.module, OptimizerSpec())
        facts = train_step(model, optimizer, batches_at(0, mesh, layout), 1e-3, 1.0)
        after = [p.detach().to_local() for p in model.module.parameters()]
        return facts.trouble, all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    for message, unchanged in on_ranks(broken_step, 2):
        assert message == "loss nan, gradient norm nan"
        assert unchanged


def _poison(output: Any) -> Any:
    output.logits = output.logits * float("nan")
    return output


def test_norm_of_gradients_on_different_meshes_is_the_root_of_all_squares() -> None:
    """torch itself refuses: all operands must have the same mesh."""

    def norm_and_gradients(ranks: Ranks) -> tuple[float, list[list[float]]]:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
        module = torch.nn.ParameterDict(
            {
                "both": distribute_tensor(torch.zeros(4), mesh, [Shard(0), Replicate()]),
                "one": distribute_tensor(torch.zeros(2), mesh["fsdp"], [Shard(0)]),
                "none": torch.zeros(1),
            }
        )
        module["both"].grad = distribute_tensor(torch.full((4,), 4.0), mesh, [Shard(0), Replicate()])  # 64
        module["one"].grad = distribute_tensor(torch.full((2,), 2.0), mesh["fsdp"], [Shard(0)])  # 8
        module["none"].grad = torch.full((1,), 28.0**0.5)  # 28
        norm = clip_gradients(module, 5.0)
        return norm, [module["both"].grad.full_tensor().tolist(), module["one"].grad.full_tensor().tolist()]

    for norm, (both, one) in on_ranks(norm_and_gradients, 4):
        assert norm == pytest.approx(10.0)
        assert both == pytest.approx([2.0] * 4, rel=1e-5)
        assert one == pytest.approx([1.0] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("num_blocks", "num_stages", "sizes"), [(4, 2, [2, 2]), (5, 2, [3, 2]), (7, 4, [2, 2, 2, 1]), (4, 4, [1, 1, 1, 1])]
)
def test_split_blocks_gives_every_block_to_one_stage_in_order(
    num_blocks: int, num_stages: int, sizes: list[int]
) -> None:
    split = split_blocks(num_blocks, num_stages)
    assert [len(stage) for stage in split] == sizes
    assert [block for stage in split for block in stage] == list(range(num_blocks))


def test_offloaded_weights_train_as_those_on_the_device() -> None:
    def losses(ranks: Ranks, offload: bool) -> list[tuple[float, float, int]]:
        return train(Layout("", 2, {"offload": offload}), ranks, True, 2)["curve"]

    kept, moved = (on_ranks(functools.partial(losses, offload=offload), 2)[0] for offload in (False, True))
    assert kept == moved


def test_table_of_parity_replaces_what_is_between_its_markers(tmp_path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- parity -->\nold\n<!-- /parity -->\nb\n")
    write_between_markers(page, "new")
    assert page.read_text() == "a\n<!-- parity -->\nnew\n<!-- /parity -->\nb\n"
    page.write_text("a\n")
    with pytest.raises(ValueError, match="has no <!-- parity -->"):
        write_between_markers(page, "new")


def test_parallel_spec_of_every_layout_is_accepted() -> None:
    for layout in LAYOUTS:
        assert isinstance(layout.spec, ParallelSpec)
        assert layout.spec.degrees(layout.ranks).batch in (1, 2, 4)
