"""The training loop of one rank: steps, checkpoints, resume, and what to do about a step that went wrong.

Everything that decides a number is an argument, or in the checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from spark_jobs.errors import TrainingError
from training.loop_spec import LoopSpec, SpikeSpec
from training.parallel_spec import Degrees
from training.pretrain import checkpointing
from training.pretrain.ema import Average
from training.pretrain.kept_zeros import keep_zeros
from training.pretrain.local_training import LocalTraining
from training.pretrain.loss import count_targets, from_first_rank
from training.pretrain.loss_scale import first_scale
from training.pretrain.lr_schedule import rate_factor
from training.pretrain.mesh import Mesh
from training.pretrain.objectives import Inputs
from training.pretrain.optimizer import (
    add_gradients,
    clip_gradients,
    make_optimizer,
    scale_gradients,
    set_rate,
    take_gradients,
)
from training.pretrain.parallel import ParallelModel, WholeModel
from training.pretrain.profiling import StepProfiler
from training.pretrain.progress import Cost, Progress, StepFacts
from training.pretrain.run_state import RunState
from training.pretrain.spikes import Incident, SpikeState, Window, position_of, trouble_of
from training.pretrain.token_shards import Prefetcher
from training.specs import TrainSpec

Judge = Callable[[float, float], str]
# Told of the optimizer once it is made; answers with tensors that change with its steps, for the checkpoint.
Companion = Callable[[torch.optim.Optimizer], dict[str, Tensor]]


@dataclass(frozen=True)
class Plan:
    """How long and how fast: from scratch, or on from a champion."""

    num_steps: int
    peak_rate: float
    identity: str  # of request and corpus; a checkpoint of another identity is refused


class Material(Protocol):
    """What a training reads."""

    @property
    def heldout(self) -> Ordered[Inputs]:
        """This rank's share of what is not trained on; () where none is watched."""
        ...

    def micro_batches(self, positions: Ordered[int], size: int) -> Ordered[Inputs]:
        """What stands at `positions` of the endless data stream, `size` of them in each but the last."""
        ...


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


def micro_batch_size(spec: LoopSpec, degrees: Degrees) -> int:
    """Sequences of a micro-batch; a pipeline's are all equal."""
    if degrees.pp == 1:
        return spec.micro_batch
    return spec.sequences_per_step // degrees.batch // spec.parallel.pp_micro_batches


def unless_finite(loss: float, norm: float) -> str:
    return trouble_of(loss, norm, SpikeState(), SpikeSpec())


def train_step(
    model: ParallelModel, optimizer: torch.optim.Optimizer, parts: Ordered[Inputs], rate: float, clip_norm: float,
    judge: Judge = unless_finite, scale: float = 1.0, measure_noise: bool = False,
) -> StepFacts:  # fmt: skip
    """One optimizer step over this rank's micro-batches; loss and norm are those of the whole step on all ranks.

    Every micro-batch's summed loss is divided by the step's number of targets over all ranks and micro-batches, and
    gradients are summed: a mean of means would weight short micro-batches too much (transformers#34191).
    `judge` may find trouble in loss and norm, which all ranks have alike; the weights are then untouched.
    """
    counts = [sum(count_targets(part.targets_BS) for part in parts), sum(part.num_tokens for part in parts)]
    num_targets, num_tokens, num_small = model.mesh.sum_once([*counts, count_targets(parts[0].targets_BS)])
    divisor = max(num_targets, 1.0) / scale
    share, small_norm = 0.0, 0.0
    rest = parts[1:] if measure_noise else parts
    first: dict[torch.nn.Parameter, Tensor] = {}
    if measure_noise:
        share = model.forward_backward(parts[:1], divisor)
        small_norm = clip_gradients(model.module, math.inf, model.mesh.stages, model.copies) / scale
        first = take_gradients(model.module)
    share += model.forward_backward(rest, divisor)
    add_gradients(first)
    loss = model.mesh.sum_once([share])[0] / scale
    scale_gradients(model.module, 1 / scale)
    norm = clip_gradients(model.module, clip_norm, model.mesh.stages, model.copies)
    loss, norm, small_norm = from_first_rank([loss, norm, small_norm], model.mesh.ranks.device)
    trouble = judge(loss, norm)
    if not trouble:
        set_rate(optimizer, rate)
        optimizer.step()
    optimizer.zero_grad()
    small = None
    if measure_noise and 0 < num_small < num_targets:
        small = (num_small, (small_norm * num_targets / num_small) ** 2)
    return StepFacts(loss, rate, norm, int(num_tokens), trouble, small, (num_targets, norm**2))


def train_rank(
    model: ParallelModel, material: Material, spec: LoopSpec, plan: Plan, out: Path, flops_per_token: float = 0.0,
    why_restarted: str = "", companion: Companion | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a model to the plan's end, resuming from the newest complete checkpoint under `out`.

    Writes out/data/{model,optimizer}.safetensors, ema.safetensors where there is an average, curve.jsonl and, where
    there were any, incidents.jsonl. Returns facts for the handle. `why_restarted` is told where this is no first start.
    """
    training = Training(model, material, spec, plan, out, flops_per_token, companion)
    if why_restarted:
        training.tell_restart(why_restarted)
    profiler = StepProfiler(spec.profile, out / "scratch", model.mesh.ranks)
    while not training.is_over:
        profiler.before_step(training.state.step + 1)
        training.advance()
    profiler.close()
    return training.publish()


class Training:
    """A model on its way: one rank's part, with everything that changes from step to step."""

    def __init__(
        self, model: ParallelModel, material: Material, spec: LoopSpec, plan: Plan, out: Path, flops_per_token: float,
        companion: Companion | None = None,
    ) -> None:  # fmt: skip
        self.model, self.material, self.spec, self.plan, self.out = model, material, spec, plan, out
        self.ranks, self.degrees = model.mesh.ranks, model.mesh.degrees
        self.num_sequences = plan.num_steps * spec.sequences_per_step
        self.optimizer = make_optimizer(model.module, spec.optimizer)
        if spec.keep_zeros:
            keep_zeros(model.module, self.optimizer)
        self.local = LocalTraining(model, self.optimizer, spec.local) if spec.local is not None else None
        self.tensors = self.local.state() if self.local else checkpointing.train_state(model.module, self.optimizer)
        self.average = Average(model.module, spec.ema.decay) if spec.ema.decay else None
        if self.average is not None:
            self.tensors |= self.average.state()
        if companion is not None:
            self.tensors |= companion(self.optimizer)
        seed_dropout(spec.seed, model.mesh)
        self.folder = out / "scratch" / "checkpoints"
        in_background = spec.checkpoint_mode == "async"
        self.saver = checkpointing.Saver(self.folder, self.ranks, spec.keep_checkpoints, in_background)
        self.optimizer.register_step_pre_hook(lambda *_: self.saver.wait_for_copies())
        self.state = RunState(scale=first_scale(spec.precision))
        saved = checkpointing.load_newest(self.folder, self.tensors, plan.identity, self.ranks)
        if saved:
            self.state = RunState.model_validate(checkpointing.facts_of(self.folder, saved)["run"])
        self.incidents_saved = len(self.state.spikes.incidents)
        self.inputs = Prefetcher(self._inputs_at)
        self.progress: Progress | None = None
        if self.ranks.is_first:
            cost = Cost.of(flops_per_token, self.ranks.device, self.ranks.world_size) if flops_per_token else None
            self.progress = Progress(out / "scratch", saved, plan.num_steps, cost)

    @property
    def is_over(self) -> bool:
        return self.state.drawn >= self.num_sequences or self.state.stop.is_over(self.spec.early_stop)

    def tell_restart(self, reason: str) -> None:
        """An event, not a part of the output: that is the same as without the restart."""
        if self.progress is not None:
            step = self.state.step
            told = f"{reason}; all ranks were started again, from the checkpoint of step {step}"
            self.progress.incident({"step": step, "action": "restart", "reason": told, "to_step": step})

    def advance(self) -> None:
        """One step: applied, tried again at a lower loss scale, or its rows avoided."""
        state, spec = self.state, self.spec
        count = min(spec.sequences_per_step * state.noise.ratio, self.num_sequences - state.drawn)
        loading = time.monotonic()
        parts = self.inputs.take(self._positions(state.drawn, count))
        loading = time.monotonic() - loading
        left = self.num_sequences - state.drawn - count
        if left:
            self.inputs.expect(self._positions(state.drawn + count, min(count, left)))
        rate = self.plan.peak_rate * rate_factor(
            state.drawn / spec.sequences_per_step, self.plan.num_steps, spec.schedule
        )
        every = spec.adaptive_batch.measure_every
        take_step = self.local.step if self.local is not None else train_step
        facts = take_step(
            self.model, self.optimizer, parts, rate, spec.optimizer.clip_norm,
            lambda loss, norm: trouble_of(loss, norm, state.spikes, spec.spikes), state.scale.scale,
            measure_noise=bool(every) and state.step % every == 0 and len(parts) > 1,
        )  # fmt: skip
        if not facts.trouble:
            self._accept(facts, count, loading)
        elif state.scale.can_fall and math.isfinite(facts.loss) and not math.isfinite(facts.grad_norm):
            self.state = state.model_copy(update={"scale": state.scale.after(finite=False)})
        else:
            self._avoid(facts, count)

    def _positions(self, drawn: int, count: int) -> tuple[int, ...]:
        """Where in the stream this rank's share lies of the `count` sequences trained on after the first `drawn`."""
        part = rank_positions(0, count, self.degrees, self.ranks.rank)
        return tuple(position_of(drawn + index, self.state.spikes.jumped) for index in part)

    def _inputs_at(self, positions: tuple[int, ...]) -> Ordered[Inputs]:
        """Micro-batches of the sequences at `positions`."""
        size = micro_batch_size(self.spec, self.degrees)
        return self.material.micro_batches(positions, size)

    def _accept(self, facts: StepFacts, count: int, loading: float) -> None:
        """The step was applied: count it, look at what is due, tell, save."""
        before, spec = self.state, self.spec
        if self.local is not None:
            self.local.after_step(before.step + 1, is_last=before.drawn + count >= self.num_sequences)
        step, stop, noise = before.step + 1, before.stop.after_step(facts.loss), before.noise
        if self.average is not None:
            self.average.update(self.model.module, step)
        if step % spec.early_stop.every == 0 and (self.material.heldout or spec.early_stop.patience):
            heldout_loss = self._heldout_loss() if self.material.heldout else None
            facts = dataclasses.replace(facts, heldout_loss=heldout_loss)
            stop = stop.after_look(heldout_loss, spec.early_stop)
        if facts.small is not None:
            noise = noise.measured(facts.small, facts.large, spec.adaptive_batch.smoothing)
            facts = dataclasses.replace(facts, noise_scale=noise.scale)
        if spec.adaptive_batch.max_ratio > 1 and step % spec.adaptive_batch.change_every == 0:
            noise = noise.adapted(facts.large[0] * spec.sequences_per_step / count, spec.adaptive_batch)
        self.state = RunState(
            step=step, drawn=before.drawn + count, scale=before.scale.after(finite=True), noise=noise, stop=stop,
            spikes=before.spikes.accepted(facts.loss, facts.grad_norm, spec.spikes),
        )  # fmt: skip
        if self.progress is not None:
            left = -(-(self.num_sequences - self.state.drawn) // (spec.sequences_per_step * noise.ratio))
            self.progress.num_steps = step + left
            self.progress.step(step, dataclasses.replace(facts, num_sequences=count), loading)
        if step % spec.checkpoint_every == 0 or self.is_over:
            self._save()

    def _heldout_loss(self) -> float:
        """Mean loss of the held-out sequences, of the averaged weights if these are what will be exported."""
        parts = self.material.heldout
        assert isinstance(self.model, WholeModel)  # TrainSpec refuses the rest
        averaged = self.average is not None and self.spec.ema.export
        with self.average.in_place(self.model.module) if averaged and self.average else contextlib.nullcontext():
            total = self.model.loss_of(parts)
        counts = float(sum(count_targets(part.targets_BS) for part in parts))
        nats, num_targets = self.model.mesh.sum_once([total, counts])
        return nats / max(num_targets, 1.0)

    def _avoid(self, facts: StepFacts, count: int) -> None:
        """The step was not applied: drop its rows, or go back and drop all rows since. All ranks do the same.

        Raises: TrainingError if that was tried often enough.
        """
        state, spec = self.state, self.spec.spikes
        first, end = (position_of(i, state.spikes.jumped) for i in (state.drawn, state.drawn + count - 1))
        rows = (first, end + 1)
        if state.spikes.in_a_row < spec.max_skips:
            incident = Incident(step=state.step + 1, action="skip", reason=facts.trouble, rows=rows, to_step=state.step)
            self.state = state.model_copy(update={"spikes": state.spikes.skipped(incident)})
        else:
            incident = self._go_back(facts, rows)
        if self.progress is not None:
            self.progress.incident(incident.model_dump(mode="json"))

    def _go_back(self, facts: StepFacts, rows: Window) -> Incident:
        """Load the newest checkpoint without an incident before it, and jump over every row drawn since."""
        state, spec = self.state, self.spec.spikes
        self.saver.wait()
        clean = 0
        if spec.enabled and state.spikes.num_rollbacks < spec.max_rollbacks:
            clean = checkpointing.newest_clean(self.folder, self.ranks)
        if not clean:
            raise TrainingError(self._why_stopped(facts))
        checkpointing.drop_after(self.folder, clean, self.ranks)
        saved = RunState.model_validate(
            checkpointing.load_step(self.folder, clean, self.tensors, self.plan.identity, self.ranks)["run"]
        )
        first = position_of(saved.drawn, saved.spikes.jumped)
        incident = Incident(
            step=state.step + 1, action="rollback", reason=facts.trouble, rows=(first, rows[1]), to_step=clean
        )
        spikes = saved.spikes.rolled_back(state.spikes, incident)
        self.state = saved.model_copy(update={"spikes": spikes, "scale": state.scale})
        self.incidents_saved = len(spikes.incidents)
        if self.progress is not None:
            self.progress = self.progress.reopened(clean)
        return incident

    def _why_stopped(self, facts: StepFacts) -> str:
        spikes = self.state.spikes
        return (
            f"training stopped at step {self.state.step + 1} of {self.plan.num_steps}: {facts.trouble}, learning rate "
            f"{facts.learning_rate:g}, after {spikes.in_a_row} steps skipped and {spikes.num_rollbacks} rollbacks; "
            "nothing was published. Lower optimizer.learning_rate or optimizer.clip_norm, or look at that step's documents"
        )

    def _save(self) -> None:
        clean = len(self.state.spikes.incidents) == self.incidents_saved  # none since the checkpoint before
        facts = {"identity": self.plan.identity, "run": self.state.model_dump(mode="json"), "clean": clean}
        durable = self.progress.flushed() if self.progress is not None else _nothing
        self.saver.save(self.state.step, self.tensors, facts, durable)
        self.incidents_saved = len(self.state.spikes.incidents)

    def publish(self) -> dict[str, Any]:
        """Write the final files; facts for the handle on rank 0, {} elsewhere."""
        self.saver.wait()
        data, state = self.out / "data", self.state
        self.inputs.close()
        checkpointing.save_final(data, self.tensors, self.model.mesh)
        if self.progress is None:
            return {}
        self.progress.close()
        curve = self.progress.curve_path.read_bytes()
        (data / "curve.jsonl").write_bytes(curve)
        incidents = [incident.model_dump_json() + "\n" for incident in state.spikes.incidents]
        if incidents:
            (data / "incidents.jsonl").write_text("".join(incidents))
        return {
            "num_steps": state.step,
            "num_sequences": state.drawn,
            "num_tokens": self.progress.num_tokens,
            "final_loss": float(json.loads(curve.splitlines()[-1])["loss"]),
            "jumped": state.spikes.jumped,
            "num_incidents": len(incidents),
            "stopped_early": state.drawn < self.num_sequences,
            "exported": "ema" if self.average is not None and self.spec.ema.export else "model",
        }


def seed_dropout(seed: int, mesh: Mesh) -> None:
    """Other units are dropped on ranks with other rows or blocks, the same on ranks that share matrices."""
    at = mesh.at
    torch.manual_seed((((seed * 4096 + at.batch) * 4096 + at.cp) * 4096 + at.pp) % 2**63)


def _nothing() -> None:
    pass
