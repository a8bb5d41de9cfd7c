"""How a training runs, whatever it trains: optimizer, schedule, loss, checkpoints, ranks. Pre-training and fine-tuning share it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from spark_jobs.manifests import Frozen
from training.distill_spec import DistillSpec
from training.parallel_spec import Degrees, ParallelSpec


class OptimizerSpec(Frozen):
    """How gradients become steps. No decay on tensors of fewer than two dimensions: norms and biases."""

    kind: Literal["adamw", "adam", "sgd", "adafactor", "muon"] = Field(
        "adamw",
        description="adamw: arXiv:1711.05101. adam: arXiv:1412.6980. sgd: with momentum. adafactor: arXiv:1804.04235, "
        "least memory, rate relative to a parameter's scale. muon: arXiv:2502.16982, for matrices of hidden layers, with "
        "adamw for the rest.",
    )
    learning_rate: float = Field(4e-3, gt=0, description="Peak rate.")
    weight_decay: float = Field(
        0.1, ge=0, description="Weight decay: added to the gradient for sgd and adam (L2), decoupled for the others."
    )
    decay_embeddings: bool = Field(True, description="Whether embeddings, and a head tied to them, are decayed.")
    beta1: float = Field(0.9, ge=0, lt=1, description="First moment, of adam and adamw.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Second moment, of adam and adamw.")
    momentum: float = Field(0.95, ge=0, lt=1, description="Of sgd, and of muon, there in Nesterov's form.")
    layer_rate_decay: float = Field(
        1.0, gt=0, le=1, description="Rate of a block as a share of that of the block above it; 1: one rate for all."
    )
    clip_norm: float = Field(1.0, gt=0, description="Global gradient norm above which gradients are scaled down.")


class LossSpec(Frozen):
    """Cross entropy over real targets, and what may be mixed in."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target given to all tokens alike.")
    z_loss: float = Field(
        0.0, ge=0, description="Weight of the squared log of the softmax's denominator; PaLM takes 1e-4."
    )
    chunk_tokens: int = Field(
        0,
        ge=0,
        description="Tokens whose logits exist at once; 0: of a whole micro-batch. Changes memory, not numbers.",
    )


class ScheduleSpec(Frozen):
    """Learning rate over the plan's tokens, as a share of the peak; each kind begins with a warm-up.

    wsd: warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395). Other falling kinds fall from the warm-up's end on.
    """

    kind: Literal["wsd", "constant", "linear", "cosine", "polynomial", "inverse_sqrt"] = Field(
        "wsd", description="How the rate goes on after the warm-up."
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="Share of steps with a rising rate.")
    decay_share: float = Field(0.3, ge=0, le=1, description="Share of steps with a falling rate; of wsd.")
    decay: Literal["linear", "sqrt", "cosine"] = Field("linear", description="Shape of wsd's falling part.")
    power: float = Field(2.0, gt=0, description="Exponent of polynomial; 1 is linear.")
    final_ratio: float = Field(
        0.1, ge=0, le=1, description="Last rate as a share of the peak; the floor of inverse_sqrt."
    )


class EmaSpec(Frozen):
    """An exponential moving average of the weights, kept beside them."""

    decay: float = Field(0.0, ge=0, lt=1, description="Of the average, for example 0.999; 0: none is kept.")
    export: bool = Field(True, description="Whether the average, if there is one, is what is exported and evaluated.")


class SpikeSpec(Frozen):
    """What to do where loss or gradient norm jump. A step that is not finite is skipped in any case.

    Skipping drops the step's rows; after max_skips in a row training goes back to the newest checkpoint without an
    incident before it, and jumps over all rows since.
    """

    enabled: bool = Field(False, description="Look for spikes: mean + sigma over the last `window` steps.")
    sigma: float = Field(6.0, gt=0, description="Standard deviations above the mean that make a spike. OLMo-core's.")
    window: int = Field(128, ge=2, description="Accepted steps the mean is taken over.")
    active_after: int = Field(64, ge=2, description="Accepted steps before the first spike can be found.")
    max_skips: int = Field(3, ge=0, description="Steps skipped in a row before going back (or stopping).")
    max_rollbacks: int = Field(3, ge=0, description="Times training goes back before it stops; 0: it stops at once.")

    @model_validator(mode="after")
    def window_reaches(self) -> SpikeSpec:
        if self.active_after > self.window:
            raise ValueError(f"active_after {self.active_after} is more than the window of {self.window} steps")
        return self


class AdaptiveBatchSpec(Frozen):
    """The gradient-noise scale (arXiv:1812.06162), and a batch that follows it. The rate follows the tokens."""

    measure_every: int = Field(0, ge=0, description="Steps between two measurements; 0: none.")
    smoothing: float = Field(0.95, ge=0, lt=1, description="Share of the past in the measured means.")
    max_ratio: int = Field(
        1, ge=1, le=1024, description="Largest batch as a multiple of sequences_per_step; 1: measure only."
    )
    change_every: int = Field(20, ge=1, description="Steps between two changes of the batch.")


class EarlyStopSpec(Frozen):
    """Look at a loss every so many steps, and stop when it has not fallen for `patience` looks."""

    watch: Literal["train", "heldout"] = Field(
        "train",
        description="train: mean loss since the last look. heldout: of held-out documents, the highest ids first; the "
        "gate scores the lowest.",
    )
    every: int = Field(20, ge=1, description="Steps between two looks.")
    patience: int = Field(0, ge=0, description="Looks without a gain before training stops; 0: it never does.")
    min_gain: float = Field(0.0, ge=0, description="Nats a target the loss must fall by to count as a gain.")
    num_sequences: int = Field(16, ge=1, description="Held-out sequences scored at a look.")


class LocalSpec(Frozen):
    """Replicas that train on their own and meet every few steps. Each is a whole model on one rank (dp_replicate)."""

    every: int = Field(50, ge=1, description="Steps that a replica takes on its own between two outer steps.")
    outer: Literal["average", "nesterov"] = Field(
        "average",
        description="average: the mean of the replicas (local SGD). nesterov: a step with momentum towards it (DiLoCo, "
        "arXiv:2311.08105).",
    )
    outer_rate: float = Field(0.7, gt=0, description="Rate of the outer step, of nesterov. DiLoCo's.")
    outer_momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of the outer steps, of nesterov. DiLoCo's.")
    weight_by: Literal["tokens", "equal"] = Field(
        "tokens",
        description="Weight of a replica in the mean: its targets since the last outer step, or the same for all.",
    )


class ProfileSpec(Frozen):
    """A trace of some steps, of every rank. It changes no number and is no part of the step's key."""

    first_step: int = Field(10, ge=1, description="First optimizer step in the trace, counted from 1.")
    num_steps: int = Field(3, ge=1, le=100, description="Optimizer steps in the trace.")


class LoopSpec(Frozen):
    """What any training is: how gradients become steps, on how many ranks, watched and saved how."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"profile"})  # fields that change no byte of what a step publishes

    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    loss: LossSpec = LossSpec()
    ema: EmaSpec = EmaSpec()
    spikes: SpikeSpec = SpikeSpec()
    adaptive_batch: AdaptiveBatchSpec = AdaptiveBatchSpec()
    early_stop: EarlyStopSpec = EarlyStopSpec()
    sequences_per_step: int = Field(4, ge=1, description="Global batch in sequences, over all ranks.")
    micro_batch: int = Field(8, ge=1, description="Sequences a rank runs at once.")
    ranks: int = Field(
        2, ge=1, le=4096, description="Processes that train; identity, because sums are ordered by rank."
    )
    parallel: ParallelSpec = ParallelSpec()
    local: LocalSpec | None = Field(None, description="Train replicas that meet every few steps; none: every step.")
    distill: DistillSpec | None = Field(None, description="Learn from a teacher too; none: from the targets alone.")
    profile: ProfileSpec | None = Field(None, description="Record where time goes in a few steps; none: no trace.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of weights in forward and backward; masters are fp32. fp16 scales the loss."
    )
    keep_zeros: bool = Field(
        False,
        description="Matrices' weights that are 0 in the model training starts from stay 0; embeddings may change.",
    )
    checkpoint_every: int = Field(50, ge=1, description="Steps between two checkpoints.")
    checkpoint_mode: Literal["blocking", "async"] = Field(
        "blocking", description="async: copied to host memory, and written while training goes on. The same bytes."
    )
    max_restarts: int = Field(
        0,
        ge=0,
        le=100,
        description="Times all ranks start again from the newest complete checkpoint when one was killed or failed.",
    )
    keep_checkpoints: int = Field(2, ge=2, le=100, description="Newest complete checkpoints kept while training.")
    seed: int = Field(0, ge=0, description="Of initial weights and the order of sequences.")

    @model_validator(mode="after")
    def ranks_share_the_work(self) -> Self:
        degrees = self.parallel.degrees(self.ranks)
        rows, rest = divmod(self.sequences_per_step, degrees.batch)
        if rest:
            raise ValueError(
                f"sequences_per_step {self.sequences_per_step} is not a multiple of the {degrees.batch} ranks "
                f"that read different rows ({self.ranks} ranks in all)"
            )
        self.parallel.check_strategy(self.precision)
        self._check_adaptive_batch(rows)
        self._check_local(degrees)
        self._check_distill()
        return self

    @model_serializer(mode="wrap")
    def without_what_came_later(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields younger than outputs that were made without them: unset they are not written, so that their keys stay."""
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if value or name not in ("distill", "keep_zeros")}

    def _check_distill(self) -> None:
        """Teacher and student are whole models on every rank, and the student's logits exist."""
        if self.distill is None:
            return
        wants = {f"parallel.{name}": getattr(self.parallel, name) > 1 for name in ("tp", "pp", "cp")}
        wants |= {"loss.chunk_tokens": self.loss.chunk_tokens > 0, "local": self.local is not None}
        wants |= {"parallel.compile": self.parallel.compile and self.distill.hidden is not None}
        for name, asked in wants.items():
            if asked:
                raise ValueError(
                    f"{name} does not go with distill: a teacher's whole answer is compared with the student's; leave one out"
                )

    def _check_local(self, degrees: Degrees) -> None:
        """Replicas that train on their own: what needs one model all the time is refused."""
        if self.local is None:
            return
        cut = [name for name in ("pp", "cp", "tp", "dp_shard") if getattr(degrees, name) > 1]
        if cut or self.parallel.strategy == "ddp":
            what = f"parallel.{cut[0]} {getattr(degrees, cut[0])}" if cut else "parallel.strategy ddp"
            raise ValueError(
                f"{what} does not go with train.local: each replica is a whole model on one rank; "
                f"set parallel.dp_replicate to {self.ranks}, strategy to fsdp, and cp, tp and pp to 1"
            )
        refused = {"ema.decay": self.ema.decay, "adaptive_batch.measure_every": self.adaptive_batch.measure_every}
        for name, value in refused.items():
            if value:
                raise ValueError(f"{name} {value:g} does not go with train.local: replicas differ; set it to 0")
        looks = self.early_stop.patience or self.early_stop.watch == "heldout"
        wanted = {"checkpoint_every": self.checkpoint_every} | (
            {"early_stop.every": self.early_stop.every} if looks else {}
        )
        for name, value in wanted.items():
            if value % self.local.every:
                raise ValueError(
                    f"{name} {value} is not a multiple of local.every {self.local.every}: only then are replicas one model"
                )

    def _check_adaptive_batch(self, rows: int) -> None:
        """`rows`: of one rank in a step."""
        spec = self.adaptive_batch
        if spec.max_ratio > 1 and not spec.measure_every:
            raise ValueError(
                f"adaptive_batch.max_ratio {spec.max_ratio} wants a measurement: set measure_every to 1 or more"
            )
        if not spec.measure_every:
            return
        if self.parallel.pp > 1 or self.parallel.strategy == "ddp":
            raise ValueError("adaptive_batch.measure_every wants strategy fsdp without a pipeline: set it to 0")
        if rows <= self.micro_batch:
            raise ValueError(
                f"adaptive_batch compares a step's first micro-batch with the whole: {rows} sequences of a rank are one "
                f"micro-batch of {self.micro_batch}; lower micro_batch or raise sequences_per_step"
            )
