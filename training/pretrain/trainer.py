"""The training loop of one rank: steps, checkpoints, resume. Everything that decides a number is an argument."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spark_jobs.errors import TrainingError
from training.parallel_spec import Degrees
from training.pretrain import checkpointing
from training.pretrain.loss import count_targets
from training.pretrain.lr_schedule import rate_factor
from training.pretrain.micro_batch import micro_batch_of
from training.pretrain.optimizer import clip_gradients, make_optimizer, set_rate
from training.pretrain.parallel import ParallelModel
from training.pretrain.progress import Progress, StepFacts
from training.pretrain.token_shards import Batch, Sequences
from training.specs import TrainSpec


@dataclass(frozen=True)
class Plan:
    """How long and how fast: from scratch, or on from a champion."""

    num_steps: int
    peak_rate: float
    identity: str  # of request and corpus; a checkpoint of another identity is refused


def plan_of(spec: TrainSpec, continues: bool, identity: str) -> Plan:
    if continues:
        return Plan(spec.continue_steps, spec.optimizer.learning_rate * spec.continue_rate_ratio, identity)
    return Plan(spec.num_steps, spec.optimizer.learning_rate, identity)


def rank_positions(step: int, sequences_per_step: int, degrees: Degrees, rank: int) -> range:
    """Positions of the data stream this rank reads in `step`: a contiguous, equal part of the step's sequences.

    Ranks that share sequences, matrices or blocks read the same.
    """
    share = sequences_per_step // degrees.batch
    first = step * sequences_per_step + degrees.coordinate(rank).batch * share
    return range(first, first + share)


def micro_batch_size(spec: TrainSpec, degrees: Degrees) -> int:
    """Sequences of a micro-batch; a pipeline's are all equal."""
    if degrees.pp == 1:
        return spec.micro_batch
    return spec.sequences_per_step // degrees.batch // spec.parallel.pp_micro_batches


def train_step(
    model: ParallelModel, optimizer: torch.optim.Optimizer, batches: Ordered[Batch], rate: float, clip_norm: float
) -> StepFacts:
    """One optimizer step over this rank's micro-batches; loss and norm are those of the whole step on all ranks.

    Every micro-batch's summed loss is divided by the step's number of targets over all ranks and micro-batches, and
    gradients are summed: a mean of means would weight short micro-batches too much (transformers#34191).
    Raises: TrainingError on all ranks together if loss or norm is not finite; the weights are then untouched.
    """
    parts = [micro_batch_of(batch, model.mesh) for batch in batches]
    counts = [sum(count_targets(part.targets_BS) for part in parts), sum(part.num_tokens for part in parts)]
    num_targets, num_tokens = model.mesh.sum_once(counts)
    (loss,) = model.mesh.sum_once([model.forward_backward(parts, num_targets)])
    norm = clip_gradients(model.module, clip_norm, model.mesh.stages)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(f"loss {loss}, gradient norm {norm}, learning rate {rate:g}")
    set_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad()
    return StepFacts(loss, rate, norm, int(num_tokens))


def train_rank(model: ParallelModel, sequences: Sequences, spec: TrainSpec, plan: Plan, out: Path) -> dict[str, Any]:
    """Train a model to the plan's last step, resuming from the newest complete checkpoint under `out`.

    Writes out/data/{model,optimizer}.safetensors and curve.jsonl. Returns facts for the handle.
    """
    mesh, ranks, degrees = model.mesh, model.mesh.ranks, model.mesh.degrees
    optimizer = make_optimizer(model.module, spec.optimizer)
    state = checkpointing.train_state(model.module, optimizer)
    folder, scratch = out / "scratch" / "checkpoints", out / "scratch"
    first = checkpointing.load_newest(folder, state, plan.identity, ranks)
    progress = Progress(scratch, first, plan.num_steps) if ranks.is_first else None
    facts = None
    for step in range(first, plan.num_steps):
        positions = rank_positions(step, spec.sequences_per_step, degrees, ranks.rank)
        batches = list(sequences.micro_batches(positions, micro_batch_size(spec, degrees)))
        rate = plan.peak_rate * rate_factor(step, plan.num_steps, spec.schedule)
        try:
            facts = train_step(model, optimizer, batches, rate, spec.optimizer.clip_norm)
        except TrainingError as err:
            raise TrainingError(
                f"training stopped at step {step + 1} of {plan.num_steps}: {err}; nothing was published. "
                "Lower optimizer.learning_rate or optimizer.clip_norm, or look at that step's documents"
            ) from err
        if progress is not None:
            progress.step(step + 1, facts)
        done = step + 1
        if done % spec.checkpoint_every == 0 or done == plan.num_steps:
            durable = progress.make_durable if progress is not None else _nothing
            checkpointing.save_step(
                folder, done, state, {"identity": plan.identity}, ranks, spec.keep_checkpoints, durable
            )
    checkpointing.save_final(out / "data", state, mesh)
    if progress is None:
        return {}
    progress.close()
    curve = progress.curve_path.read_bytes()
    (out / "data" / "curve.jsonl").write_bytes(curve)
    last_loss = facts.loss if facts is not None else _last_loss(curve)
    return {"num_tokens": progress.num_tokens, "final_loss": last_loss}


def _last_loss(curve: bytes) -> float:
    """For a run killed between its last checkpoint and publishing."""
    return float(json.loads(curve.splitlines()[-1])["loss"])


def _nothing() -> None:
    pass
