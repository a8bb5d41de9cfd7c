"""The training loop of one rank: steps, checkpoints, resume. Everything that decides a number is an argument."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from spark_jobs.errors import TrainingError
from training.pretrain import checkpointing
from training.pretrain.loss import count_targets, sum_cross_entropy, sum_over_ranks, targets_of
from training.pretrain.lr_schedule import rate_factor
from training.pretrain.optimizer import clip_gradients, make_optimizer, set_rate
from training.pretrain.parallel import Ranks, sync_gradients
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


def rank_positions(step: int, sequences_per_step: int, ranks: Ranks) -> range:
    """Positions of the data stream this rank reads in `step`: a contiguous, equal part of the step's sequences."""
    share = sequences_per_step // ranks.world_size
    first = step * sequences_per_step + ranks.rank * share
    return range(first, first + share)


def train_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batches: Ordered[Batch], rate: float, clip_norm: float,
    ranks: Ranks,
) -> StepFacts:  # fmt: skip
    """One optimizer step over this rank's micro-batches; loss and norm are those of the whole step on all ranks.

    Every micro-batch's summed loss is divided by the step's number of targets over all ranks and micro-batches, and
    gradients are summed: a mean of means would weight short micro-batches too much (transformers#34191).
    Raises: TrainingError on all ranks together if loss or norm is not finite; the weights are then untouched.
    """
    targets = [targets_of(batch.labels_BT) for batch in batches]
    counts = [sum(count_targets(t) for t in targets), sum(batch.num_tokens for batch in batches)]
    num_targets, num_tokens = sum_over_ranks(counts, ranks.device)
    local_loss = 0.0
    for i, (batch, targets_BT) in enumerate(zip(batches, targets, strict=True)):
        sync_gradients(model, last=i == len(batches) - 1)
        logits_BTV = model(
            input_ids=batch.tokens_BT.to(ranks.device),
            attention_mask=batch.attention_mask().to(ranks.device),
            position_ids=batch.positions_BT.to(ranks.device),
        ).logits
        loss = sum_cross_entropy(logits_BTV, targets_BT.to(ranks.device)) / max(num_targets, 1)
        torch.autograd.backward(loss)
        local_loss += float(loss.detach())
    (loss_value,) = sum_over_ranks([local_loss], ranks.device)
    norm = clip_gradients(model, clip_norm)
    if not (math.isfinite(loss_value) and math.isfinite(norm)):
        raise TrainingError(f"loss {loss_value}, gradient norm {norm}, learning rate {rate:g}")
    set_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad()
    return StepFacts(loss_value, rate, norm, int(num_tokens))


def train_rank(
    model: LlamaForCausalLM, sequences: Sequences, spec: TrainSpec, plan: Plan, out: Path, ranks: Ranks
) -> dict[str, Any]:
    """Train a sharded model to the plan's last step, resuming from the newest complete checkpoint under `out`.

    Writes out/data/{model,optimizer}.safetensors and curve.jsonl. Returns facts for the handle.
    """
    optimizer = make_optimizer(model, spec.optimizer)
    state = checkpointing.train_state(model, optimizer)
    folder, scratch = out / "scratch" / "checkpoints", out / "scratch"
    first = checkpointing.load_newest(folder, state, plan.identity, ranks)
    progress = Progress(scratch, first, plan.num_steps) if ranks.is_first else None
    facts = None
    for step in range(first, plan.num_steps):
        positions = rank_positions(step, spec.sequences_per_step, ranks)
        batches = list(sequences.micro_batches(positions, spec.micro_batch))
        rate = plan.peak_rate * rate_factor(step, plan.num_steps, spec.schedule)
        try:
            facts = train_step(model, optimizer, batches, rate, spec.optimizer.clip_norm, ranks)
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
    checkpointing.save_final(out / "data", state, ranks)
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
