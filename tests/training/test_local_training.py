"""Replicas that train on their own, in float64 on real ranks: the invariants, the formulas, an exact resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.parity import Layout, batches_at, tiny_llama
from training.loop_spec import LocalSpec, OptimizerSpec
from training.pretrain import checkpointing
from training.pretrain.local_training import LocalTraining, OuterOptimizer, ReplicaMesh
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.optimizer import make_optimizer
from training.pretrain.parallel import parallelize
from training.pretrain.trainer import train_step, unless_finite

COPIES = Layout("copies", 2, {"dp_replicate": 2}, 2)
PLAIN_SGD = OptimizerSpec(kind="sgd", learning_rate=0.1, momentum=0.0)
NEVER_CLIPS = 1e9
RunRanks = Callable[[Callable[[Ranks], Any], int], list[Any]]
Found = dict[str, Any]


def train_together(ranks: Ranks, optimizer: OptimizerSpec, num_steps: int) -> Found:
    """Synchronous data parallel: gradients are summed in every step."""
    mesh = make_mesh(ranks, COPIES.spec.degrees(2))
    model = parallelize(tiny_llama(tied=True), mesh, COPIES.spec)
    sgd = make_optimizer(model.module, optimizer)
    curve = []
    for step in range(num_steps):
        facts = train_step(model, sgd, batches_at(step, mesh, COPIES), optimizer.learning_rate, NEVER_CLIPS)
        curve.append((facts.loss, facts.tokens))
    state = checkpointing.train_state(model.module, sgd)
    return {"curve": curve, "weights": checkpointing.gather_state(state, mesh)}


def train_apart(
    ranks: Ranks, spec: LocalSpec, optimizer: OptimizerSpec, num_steps: int, folder: Path | None = None
) -> Found:
    """On from the newest checkpoint in `folder`, if there is one, to a checkpoint of the last step."""
    mesh = ReplicaMesh.of(make_mesh(ranks, COPIES.spec.degrees(2)))
    model = parallelize(tiny_llama(tied=True), mesh, COPIES.spec)
    inner = make_optimizer(model.module, optimizer)
    local = LocalTraining(model, inner, spec)
    first = checkpointing.load_newest(folder, local.state(), "a", ranks) if folder else 0
    curve, before_meetings = [], []
    for step in range(first, num_steps):
        parts = batches_at(step, mesh, COPIES)
        facts = local.step(model, inner, parts, optimizer.learning_rate, NEVER_CLIPS, unless_finite)
        before_meetings.append(next(iter(local.weights.values())).clone())
        local.after_step(step + 1, is_last=step + 1 == num_steps)
        curve.append((facts.loss, facts.tokens))
    if folder:
        checkpointing.save_step(folder, num_steps, local.state(), {"identity": "a"}, ranks, keep=2)
    state = {name: tensor.clone() for name, tensor in local.state().items()}
    return {"curve": curve, "weights": state, "before": before_meetings}


def largest_difference(one: Found, other: Found) -> float:
    names = [name for name in one["weights"] if name.startswith("model.")]
    assert names
    return max(float((one["weights"][name] - other["weights"][name]).abs().max()) for name in names)


@pytest.mark.parametrize(
    "outer", [{"outer": "average"}, {"outer": "nesterov", "outer_rate": 1.0, "outer_momentum": 0.0}], ids=str
)
def test_one_step_of_plain_sgd_between_meetings_is_synchronous_data_parallel(
    run_ranks: RunRanks, outer: dict[str, Any]
) -> None:
    spec = LocalSpec(every=1, **outer)
    together = run_ranks(lambda ranks: train_together(ranks, PLAIN_SGD, 4), 2)
    apart = run_ranks(lambda ranks: train_apart(ranks, spec, PLAIN_SGD, 4), 2)
    np.testing.assert_allclose(apart[0]["curve"], together[0]["curve"], rtol=1e-12)
    assert apart[0]["curve"] == apart[1]["curve"]
    assert largest_difference(together[0], apart[0]) < 1e-12
    assert largest_difference(apart[0], apart[1]) == 0.0


def test_replicas_of_equal_weight_are_not_data_parallel_where_targets_are_unequal(run_ranks: RunRanks) -> None:
    spec = LocalSpec(every=1, weight_by="equal")
    together = run_ranks(lambda ranks: train_together(ranks, PLAIN_SGD, 4), 2)
    apart = run_ranks(lambda ranks: train_apart(ranks, spec, PLAIN_SGD, 4), 2)
    assert largest_difference(together[0], apart[0]) > 1e-4


def test_replicas_differ_between_meetings_and_are_equal_after_them(run_ranks: RunRanks) -> None:
    """Also after the last, which is no multiple of three."""
    one, other = run_ranks(lambda ranks: train_apart(ranks, LocalSpec(every=3), PLAIN_SGD, 5), 2)
    assert largest_difference(one, other) == 0.0
    assert all(not torch.equal(a, b) for a, b in zip(one["before"], other["before"], strict=True))


@pytest.mark.parametrize(("weight_by", "expected"), [("tokens", 3.0), ("equal", 2.0)])
def test_mean_of_replicas_weighs_them_by_their_targets(run_ranks: RunRanks, weight_by: str, expected: float) -> None:
    """0 with one target, 4 with three."""

    def meet(ranks: Ranks) -> float:
        weights = {"w": torch.zeros(1, dtype=torch.float64)}
        outer = OuterOptimizer(weights, LocalSpec.model_validate({"weight_by": weight_by}))
        weights["w"].fill_(4.0 * ranks.rank)
        outer.step([1.0, 3.0][ranks.rank])
        return float(weights["w"])

    assert run_ranks(meet, 2) == [expected, expected]


def test_meeting_without_any_target_moves_nothing(run_ranks: RunRanks) -> None:
    def meet(ranks: Ranks) -> float:
        weights = {"w": torch.ones(1, dtype=torch.float64)}
        OuterOptimizer(weights, LocalSpec()).step(0.0)
        return float(weights["w"])

    assert run_ranks(meet, 2) == [1.0, 1.0]


def test_outer_steps_of_nesterov_are_those_of_torch(run_ranks: RunRanks) -> None:
    """Three meetings; torch.optim.SGD is given the mean difference as its gradient."""
    moves = [[0.3, -1.0, 2.0], [0.1, 0.4, -0.2]]  # of each replica before each meeting

    def meet(ranks: Ranks) -> list[float]:
        weights = {"w": torch.ones(1, dtype=torch.float64)}
        outer, found = OuterOptimizer(weights, LocalSpec(outer="nesterov", weight_by="equal")), []
        for move in moves[ranks.rank]:
            weights["w"] += move
            outer.step(1.0)
            found.append(float(weights["w"]))
        return found

    oracle = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    sgd, expected = torch.optim.SGD([oracle], lr=0.7, momentum=0.9, nesterov=True), []
    for one, other in zip(*moves, strict=True):
        oracle.grad = torch.tensor([-(one + other) / 2], dtype=torch.float64)
        sgd.step()
        expected.append(float(oracle.detach()))
    found = run_ranks(meet, 2)
    assert found[0] == found[1] == pytest.approx(expected, rel=1e-14)


def test_run_resumed_at_a_meeting_goes_on_to_the_bit(run_ranks: RunRanks, tmp_path: Path) -> None:
    """Outer weights and momentum, and the moments of each replica, which differ, come from the checkpoint."""
    spec, adamw = LocalSpec(every=2, outer="nesterov"), OptimizerSpec(learning_rate=1e-2)
    whole = run_ranks(lambda ranks: train_apart(ranks, spec, adamw, 6), 2)
    run_ranks(lambda ranks: train_apart(ranks, spec, adamw, 4, tmp_path), 2)
    resumed = run_ranks(lambda ranks: train_apart(ranks, spec, adamw, 6, tmp_path), 2)
    for rank, (one, other) in enumerate(zip(whole, resumed, strict=True)):
        assert other["curve"] == one["curve"][4:]
        assert one["weights"].keys() == other["weights"].keys()
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
        assert {f"replica_{rank}.model.norm.weight.exp_avg", "outer.model.norm.weight"} < one["weights"].keys()
        assert float(one["weights"]["optimizer.model.norm.weight.outer_momentum"].abs().max()) > 0
    moments = [found["weights"][f"replica_{r}.model.norm.weight.exp_avg"] for r, found in enumerate(whole)]
    assert not torch.equal(*moments)


def spoil(_module: Any, _inputs: Any, output: Any) -> Any:
    output.logits = output.logits * float("nan")
    return output


def test_replica_that_is_not_finite_stops_the_step_of_all(run_ranks: RunRanks) -> None:
    def step(ranks: Ranks) -> tuple[float, bool]:
        mesh = ReplicaMesh.of(make_mesh(ranks, COPIES.spec.degrees(2)))
        model = parallelize(tiny_llama(tied=True), mesh, COPIES.spec)
        inner = make_optimizer(model.module, PLAIN_SGD)
        local = LocalTraining(model, inner, LocalSpec())
        if ranks.rank == 1:
            model.module.register_forward_hook(spoil)
        before = {name: tensor.clone() for name, tensor in local.weights.items()}
        facts = local.step(model, inner, batches_at(0, mesh, COPIES), 0.1, 1.0, unless_finite)
        assert facts.trouble
        return float(local.targets), all(torch.equal(before[name], local.weights[name]) for name in before)

    assert run_ranks(step, 2) == [(0.0, True), (0.0, True)]
