"""What compression is asked to do: one recipe is one candidate of a night. Pydantic only, as the forms show it.

Order of a recipe's parts, whichever of them it has: shrink, prune, recover, quantize, write.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spark_jobs.manifests import Frozen

WANTS_INPUTS = ("gptq", "awq", "smoothquant")  # methods that measure layers on calibration sequences
LABEL_PATTERN = r"^[a-z0-9][a-z0-9-]{0,40}$"  # a recipe's name is a part of step names and of folders


class CalibrationSpec(Frozen):
    """Sequences of the run's own training corpus on which layers are measured; real tokens only."""

    num_sequences: int = Field(64, ge=1, le=65536, description="Sequences drawn from the training corpus.")
    sequence_length: int = Field(
        256, ge=8, le=131072, description="Tokens of a sequence at most; no padding is counted."
    )
    overlap_tokens: int = Field(
        13,
        ge=4,
        le=64,
        description="A sequence that shares so many consecutive tokens with an evaluation document is not used.",
    )
    max_overlap: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Sequences that overlap an evaluation set are left out; a larger share of them than this refuses the "
        "calibration, for such a corpus was hardly deduplicated.",
    )
    seed: int = Field(0, ge=0, description="Of the draw.")


class ShrinkSpec(Frozen):
    """Structured pruning: fewer heads, neurons, hidden units or blocks, by activation importance (Minitron)."""

    heads: float = Field(1.0, gt=0, le=1, description="Share of key-value groups kept, each with its query heads.")
    neurons: float = Field(1.0, gt=0, le=1, description="Share of a feed-forward layer's inner units kept.")
    hidden: float = Field(1.0, gt=0, le=1, description="Share of the residual stream's units kept.")
    blocks: float = Field(
        1.0, gt=0, le=1, description="Share of decoder blocks kept; the least important contiguous ones go."
    )

    @model_validator(mode="after")
    def something_goes(self) -> ShrinkSpec:
        if self.heads == self.neurons == self.hidden == self.blocks == 1.0:
            raise ValueError(
                "shrink keeps everything: set heads, neurons, hidden or blocks below 1, or leave shrink out"
            )
        return self


class PruneSpec(Frozen):
    """Zeros in the weights of linear layers; embeddings and head stay as they are."""

    method: Literal["magnitude", "wanda", "sparsegpt"] = Field("sparsegpt", description="Which weights become zero.")
    pattern: Literal["unstructured", "2:4", "4:8"] = Field(
        "2:4", description="n:m keeps m - n of m consecutive inputs."
    )
    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of zeros; n:m patterns say 0.5.")
    damping: float = Field(0.01, ge=0, le=1, description="Of the Hessian, as a share of its mean diagonal (SparseGPT).")

    @model_validator(mode="after")
    def pattern_says_half(self) -> PruneSpec:
        if self.pattern != "unstructured" and self.sparsity != 0.5:
            raise ValueError(
                f"prune.pattern {self.pattern} means sparsity 0.5, not {self.sparsity:g}: drop one of them"
            )
        return self


class RecoverSpec(Frozen):
    """Train on after shrinking or pruning, taught by the dense model; zeros stay zeros."""

    num_steps: int = Field(100, ge=1, description="Optimizer steps.")
    rate_ratio: float = Field(0.2, gt=0, le=1, description="Share of the training's peak learning rate.")
    alpha: float = Field(0.9, ge=0, le=1, description="Weight of the teacher's part of the loss.")
    temperature: float = Field(1.0, gt=0, le=20, description="Softens teacher and student alike.")


class QuantizeSpec(Frozen):
    """Codes in place of the weights of linear layers; embeddings and head stay as they are, tied or not."""

    method: Literal["rtn", "gptq", "awq", "smoothquant", "dynamic", "qat"] = Field(
        "rtn",
        description="rtn, gptq, awq: weights alone. smoothquant: weights and activations in 8 bits, smoothed. dynamic: the same, "
        "not smoothed. qat: trained with rounded weights first (torchao).",
    )
    bits: Literal[2, 3, 4, 8] = Field(4, description="Of a weight's code.")
    mixed_bits: float = Field(
        0.0,
        ge=0,
        le=8,
        description="Bits a weight on average, shared out by measured sensitivity over 3, 4, 8; 0: bits for all.",
    )
    group_size: int = Field(128, ge=0, le=4096, description="Inputs that share a scale; 0: all inputs of an output.")
    tail: Literal["refuse", "short"] = Field(
        "refuse",
        description="Where groups do not divide a layer's inputs. refuse: say so, with the layers. short: the last group of a row is "
        "shorter; files: gguf, safetensors.",
    )
    symmetric: bool = Field(True, description="One scale a group; not: a zero point too.")
    act_order: bool = Field(True, description="GPTQ rounds the inputs of largest activation first.")
    static_groups: bool = Field(
        True,
        description="Groups are those of neighbouring inputs, with scales taken before rounding; not: formed in the order of rounding.",
    )
    damping: float = Field(0.01, ge=0, le=1, description="Of the Hessian, as a share of its mean diagonal.")
    max_fallbacks: float = Field(
        0.05, ge=0, le=1, description="More layers than this share that had to be rounded to nearest fail the step."
    )
    smoothing: float = Field(
        0.5, ge=0, le=1, description="SmoothQuant's alpha: how much moves from activations to weights."
    )
    qat_steps: int = Field(50, ge=1, description="Optimizer steps of qat.")
    tied_head: Literal["skip", "once"] = Field(
        "skip", description="A head tied to the embedding: left as it is, or quantised once and shared."
    )

    @property
    def rounds_activations(self) -> bool:
        """While the model runs; its weights then have one symmetric scale an output, whatever the groups."""
        return self.method in ("smoothquant", "dynamic")

    @model_validator(mode="after")
    def method_fits_bits(self) -> QuantizeSpec:
        if self.rounds_activations and self.bits != 8:
            raise ValueError(f"quantize.method {self.method} is for bits 8, not {self.bits}")
        if self.mixed_bits and (self.method not in ("rtn", "gptq", "awq") or not 3 <= self.mixed_bits <= 8):
            raise ValueError("quantize.mixed_bits is between 3 and 8, for methods rtn, gptq and awq")
        if self.method == "qat" and not (self.symmetric and self.tail == "refuse"):
            raise ValueError("quantize.method qat rounds symmetric, whole groups: set symmetric true and tail refuse")
        return self


class RecipeSpec(Frozen):
    """One candidate: what is done to the dense model, and the files it is written as."""

    name: str = Field(pattern=LABEL_PATTERN, description="How steps, folders and tables call it.")
    shrink: ShrinkSpec | None = Field(None, description="Structured pruning.")
    prune: PruneSpec | None = Field(None, description="Zeros in weights.")
    recover: RecoverSpec | None = Field(None, description="Distillation after shrinking or pruning.")
    quantize: QuantizeSpec | None = Field(None, description="Fewer bits a weight.")
    export: Literal["safetensors", "compressed-tensors", "gguf", "torchao"] = Field(
        "compressed-tensors",
        description="safetensors: weights as numbers. compressed-tensors: vLLM and transformers. gguf: llama.cpp. torchao: "
        "int8 that runs as int8 on CPU.",
    )

    @model_validator(mode="after")
    def parts_fit(self) -> RecipeSpec:
        if not (self.shrink or self.prune or self.quantize):
            raise ValueError(f"recipe {self.name} does nothing: give it shrink, prune or quantize")
        if self.recover and not (self.shrink or self.prune):
            raise ValueError(f"recipe {self.name}: recover follows shrink or prune, of which it has none")
        if self.quantize is None and self.export != "safetensors":
            raise ValueError(f"recipe {self.name}: without quantize it is written as safetensors, not {self.export}")
        self._check_format()
        return self

    def _check_format(self) -> None:
        """What a format cannot hold whatever the model is."""
        spec = self.quantize
        if spec is None or self.export == "safetensors":
            return
        if spec.tied_head == "once" and self.export != "gguf":
            raise ValueError(
                f"recipe {self.name}: quantize.tied_head once is for export gguf, not {self.export}, which cannot share codes"
            )
        if spec.mixed_bits and (self.export != "compressed-tensors" or not spec.symmetric):
            raise ValueError(
                f"recipe {self.name}: quantize.mixed_bits is for export compressed-tensors and symmetric weights, not {self.export}"
            )
        if spec.tail == "short" and self.export != "gguf":
            raise ValueError(
                f"recipe {self.name}: quantize.tail short is for export gguf or safetensors, not {self.export}"
            )

    def misfit(self, widths: dict[str, int]) -> str:
        """What the recipe cannot do to matrices with so many inputs; "" where it fits, or changes them first. By name: inputs."""
        if self.shrink is not None:
            return ""
        spec = self.quantize
        has_groups = spec is not None and spec.tail == "refuse" and not spec.rounds_activations
        group = spec.group_size if spec is not None and has_groups else 0
        columns = {"2:4": 4, "4:8": 8}.get(self.prune.pattern if self.prune is not None else "", 0)
        for what, size in (("quantize.group_size", group), ("prune.pattern groups of", columns)):
            wrong = [f"{name} {width}" for name, width in widths.items() if size and width % size]
            if wrong:
                return f"{what} {size} does not divide {', '.join(wrong)}"
        return ""

    @property
    def wants_calibration(self) -> str:
        """The setting for which layers are measured on sequences; "" where the recipe looks at weights alone."""
        if self.shrink is not None:
            return "shrink"
        if self.prune is not None and self.prune.method != "magnitude":
            return f"prune.method {self.prune.method}"
        if self.quantize is not None and self.quantize.mixed_bits:
            return "quantize.mixed_bits"
        if self.quantize is not None and self.quantize.method in (*WANTS_INPUTS, "qat"):
            return f"quantize.method {self.quantize.method}"
        return ""


class CompressStepSpec(Frozen):
    """A recipe's share of one step. thin: shrink and prune. finish: quantize what is there, or only write it. all: both."""

    recipe: RecipeSpec
    stage: Literal["all", "thin", "finish"] = "all"


class MeasureSpec(Frozen):
    """How speed and memory of a model folder are measured, in a fresh process."""

    prompt_tokens: int = Field(128, ge=1, le=131072, description="Tokens read at once (prefill).")
    new_tokens: int = Field(32, ge=1, le=131072, description="Tokens written one after the other (decode).")
    repeats: int = Field(5, ge=1, le=1000, description="Median, lowest and highest of so many are kept.")


class BudgetSpec(Frozen):
    """Which candidate is best: the smallest or fastest of those that lose little enough."""

    minimize: Literal["bytes", "latency"] = Field(
        "bytes", description="bytes: of the weight files. latency: median seconds a written token, as measured."
    )
    max_loss: float = Field(
        0.02, ge=0, description="Largest loss in bits per byte against the dense model (upper bound of the interval)."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of that one-sided upper bound.")
    replicates: int = Field(2000, ge=100, description="Bootstrap resamples of documents.")
    seed: int = Field(0, ge=0, description="Of the resampling.")
