"""What each model step is asked to do. One frozen model a step; the same model is the YAML preset, `--set` and the form."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from spark_jobs.manifests import Frozen
from training.benchmark_spec import BenchmarkSpec, check_names
from training.compress_spec import BudgetSpec, CalibrationSpec, MeasureSpec, RecipeSpec
from training.loop_spec import LoopSpec
from training.named_recipes import NAMED, recipe_of


class ModelSpec(Frozen):
    """A language model of `transformers`, from scratch on the first night. Fields an architecture lacks are not used.

    The defaults are what reached the fewest bits per byte on the demo's text in 45 CPU-seconds: wide vocabulary, few
    blocks, small steps.
    """

    architecture: str = Field(
        "llama", pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Model type of transformers: llama, gpt2, bert, t5 ..."
    )
    overrides: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Fields of the architecture's configuration that have no name here."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Of every layer that has one; other units on each rank.")
    hidden_size: int = Field(96, ge=8, description="Width.")
    num_layers: int = Field(2, ge=1, le=200, description="Blocks; of an encoder-decoder, of each.")
    num_heads: int = Field(4, ge=1, description="Query heads; must divide hidden_size.")
    num_kv_heads: int = Field(2, ge=1, description="Key/value heads (grouped-query attention); must divide num_heads.")
    intermediate_size: int = Field(256, ge=8, description="Width of the feed-forward layer.")
    tie_embeddings: bool = Field(True, description="Share the input embedding with the output layer.")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary position embedding.")

    @model_validator(mode="after")
    def heads_divide(self) -> ModelSpec:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        return self


class TrainSpec(LoopSpec):
    """Pre-training of a language model, from scratch or continued."""

    model: ModelSpec = ModelSpec()
    objective: Literal["causal_lm", "masked_lm", "seq2seq_lm"] = Field(
        "causal_lm",
        description="causal_lm: the next token. masked_lm: hidden tokens, as BERT. seq2seq_lm: the rest of a document "
        "from its beginning, for encoder-decoders as T5.",
    )
    mask_share: float = Field(0.15, gt=0, lt=1, description="Tokens to predict, of masked_lm.")
    num_steps: int = Field(220, ge=1, description="Optimizer steps on the first night (from scratch).")
    continue_steps: int = Field(60, ge=1, description="Optimizer steps on a later night (from the champion).")
    continue_rate_ratio: float = Field(
        0.5, gt=0, le=1, description="Peak rate when training goes on, as a share of learning_rate."
    )
    order: Literal["shuffled", "short_first"] = Field(
        "shuffled", description="short_first: sequences of short documents before those of long ones, in eight steps."
    )

    @model_validator(mode="after")
    def model_can_be_cut(self) -> TrainSpec:
        rows = self.sequences_per_step // self.parallel.degrees(self.ranks).batch
        self.parallel.check_heads(self.model.num_heads, self.model.num_kv_heads, self.model.intermediate_size)
        self.parallel.check_pipeline(self.model.num_layers, rows)
        self._check_llama_only()
        self._check_whole_models_only()
        if self.distill is not None and self.distill.teacher == "served" and self.objective != "causal_lm":
            raise ValueError(
                f"distill.teacher served tells the next token, objective is {self.objective}: take a model folder"
            )
        return self

    def _check_llama_only(self) -> None:
        cut = [name for name in ("tp", "pp", "cp") if getattr(self.parallel, name) > 1]
        if cut and (self.model.architecture != "llama" or self.objective != "causal_lm"):
            raise ValueError(
                f"parallel.{cut[0]} {getattr(self.parallel, cut[0])} is for architecture llama and objective causal_lm, "
                f"not {self.model.architecture} and {self.objective}: set it to 1 and share weights by dp_shard"
            )

    def _check_whole_models_only(self) -> None:
        """What needs all of a model, or all of the vocabulary, on a rank."""
        parallel = self.parallel
        wants: dict[str, float] = {}
        if parallel.pp > 1:
            wants = {
                "loss.chunk_tokens": self.loss.chunk_tokens,
                "early_stop.watch heldout": self.early_stop.watch == "heldout",
                "optimizer.layer_rate_decay": self.optimizer.layer_rate_decay != 1.0,
            }
        if parallel.tp > 1:
            wants = wants | {
                "loss.chunk_tokens": self.loss.chunk_tokens,
                "loss.label_smoothing": self.loss.label_smoothing,
                "loss.z_loss": self.loss.z_loss,
            }
        asked = [name for name, value in wants.items() if value]
        if asked:
            raise ValueError(
                f"{asked[0]} does not go with parallel.tp {parallel.tp}, pp {parallel.pp}: drop one of them"
            )


class CompressSpec(Frozen):
    """Candidates beside the dense model, how they are calibrated and measured, and the budget that chooses among them."""

    recipes: tuple[RecipeSpec, ...] = Field(
        (NAMED["int8"], NAMED["int4"]),
        description="One candidate each; a name stands for a recipe of its own: " + ", ".join(NAMED) + ".",
    )
    calibration: CalibrationSpec = CalibrationSpec()
    measure: MeasureSpec = MeasureSpec()
    budget: BudgetSpec = BudgetSpec()

    @field_validator("recipes", mode="before")
    @classmethod
    def names_are_recipes(cls, told: Any) -> Any:
        return tuple(recipe_of(one) for one in told) if isinstance(told, list | tuple) else told

    @model_validator(mode="after")
    def names_differ(self) -> CompressSpec:
        names = [recipe.name for recipe in self.recipes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or set(names) & {"dense", "champion"}:
            raise ValueError(
                f"compress.recipes: {twice[0] if twice else 'dense and champion'!r} names more than one model; give each its own name"
            )
        return self


class GenerateSpec(Frozen):
    """A short greedy text: shows that a model folder loads and writes."""

    prompt: str = Field("The", description="What the model goes on from; may be empty.")
    max_new_tokens: int = Field(32, ge=1, le=4096, description="Tokens written at most.")


class ExportSpec(Frozen):
    """Nothing to choose: the folder follows from the checkpoint."""


class EvaluateSpec(Frozen):
    max_documents: int = Field(200, ge=1, description="Held-out documents scored, lowest ids first.")
    max_document_tokens: int = Field(1024, ge=16, description="Tokens of a document scored, from its start.")
    overlap: int = Field(
        64, ge=1, description="Tokens of context a later window of a long document sees again, unscored."
    )
    batch_tokens: int = Field(8192, ge=256, description="Tokens scored at once; changes speed, not numbers.")
    ranks: int = Field(1, ge=1, le=256, description="Processes that share the documents; changes speed, not numbers.")
    noise_share: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Letters disturbed in a second scoring of the same documents: robustness. 0: not done.",
    )
    calibration_bins: int = Field(10, ge=2, le=100, description="Of confidence in the next token.")
    replicates: int = Field(1000, ge=100, description="Bootstrap resamples of documents, behind each interval.")
    seed: int = Field(0, ge=0, description="Of the resampling and of the noise.")
    benchmarks: tuple[BenchmarkSpec, ...] = Field(
        (), description="Asked of the candidate and of the champion beside the documents; docs/evaluation.md."
    )

    # Benchmarks are steps of their own: what documents score does not depend on them.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"benchmarks"})

    @field_validator("benchmarks")
    @classmethod
    def names_differ(cls, benchmarks: tuple[BenchmarkSpec, ...]) -> tuple[BenchmarkSpec, ...]:
        check_names(benchmarks)
        return benchmarks
