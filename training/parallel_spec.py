"""How ranks share the work: the degree of every kind of parallelism, and what it must divide. No torch in here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from spark_jobs.manifests import Frozen

STAGES_PER_RANK = {"gpipe": 1, "1f1b": 1, "interleaved1f1b": 2}


@dataclass(frozen=True)
class Coordinate:
    """Where a rank stands: its pipeline stage, its share of the batch, of the sequence, of each matrix."""

    pp: int
    batch: int
    cp: int
    tp: int


@dataclass(frozen=True)
class Degrees:
    """Every degree, none left to infer; their product is the world size. tp is innermost: its peers talk most."""

    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int

    @property
    def batch(self) -> int:
        """Ranks that read different rows."""
        return self.dp_replicate * self.dp_shard

    @property
    def fsdp(self) -> int:
        """Ranks that one copy of the weights is sharded over: those of a sequence shard weights too."""
        return self.dp_shard * self.cp

    def coordinate(self, rank: int) -> Coordinate:
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, batch = divmod(rest, self.batch)
        return Coordinate(pp, batch, cp, tp)

    def check_sequences(self, seq_len: int, vocab_size: int) -> None:
        """Raises: ValueError if a sequence or the vocabulary cannot be cut evenly."""
        pieces = self.tp * (2 * self.cp if self.cp > 1 else 1)
        if seq_len % pieces:
            rule = "2 x cp x tp" if self.cp > 1 else "tp"
            raise ValueError(
                f"sequences of {seq_len} tokens cannot be cut into {pieces} ({rule}): tokenize with a seq_len that is a "
                f"multiple of {pieces}, or lower parallel.cp or parallel.tp"
            )
        if vocab_size % self.tp:
            raise ValueError(
                f"a vocabulary of {vocab_size} cannot be shared by tp {self.tp} ranks: train a tokenizer whose size is a "
                "multiple of it, or lower parallel.tp"
            )


class ParallelSpec(Frozen):
    """Degrees of parallelism; ranks = dp_replicate x dp_shard x cp x tp x pp. The default is FSDP2 over all ranks."""

    dp_replicate: int = Field(1, ge=1, description="Copies of the (sharded) weights; with dp_shard this is HSDP.")
    dp_shard: int = Field(-1, ge=-1, description="Ranks that read different rows within a copy; -1 for all left over.")
    cp: int = Field(1, ge=1, description="Ranks that share the positions of each sequence (context parallel).")
    tp: int = Field(1, ge=1, description="Ranks that share each matrix, the vocabulary and the loss (tensor parallel).")
    pp: int = Field(1, ge=1, description="Ranks that share the blocks (pipeline parallel).")
    strategy: Literal["fsdp", "ddp"] = Field(
        "fsdp", description="What ranks with different rows do with weights: shard them (FSDP2), or keep copies (DDP)."
    )
    schedule: Literal["gpipe", "1f1b", "interleaved1f1b"] = Field(
        "1f1b", description="Order of the pipeline's work; interleaved1f1b gives each rank two stages."
    )
    pp_micro_batches: int = Field(
        4, ge=1, description="Micro-batches that a step's rows are cut into when pp > 1; micro_batch is then not used."
    )
    activation_checkpointing: Literal["none", "full", "selective"] = Field(
        "none",
        description="What backward computes again: nothing, whole blocks, or all but matrix products and attention.",
    )
    compile: bool = Field(
        False,
        description="Compile each block (torch.compile) in the first steps. Numbers differ in their last bits from those "
        "without; on CPU it wants a C++ compiler.",
    )
    offload: bool = Field(False, description="Keep weights, gradients and optimizer state in host memory (fsdp).")

    @property
    def num_stages(self) -> int:
        return self.pp * STAGES_PER_RANK[self.schedule] if self.pp > 1 else 1

    def degrees(self, world_size: int) -> Degrees:
        """Raises: ValueError if the degrees do not multiply to `world_size`."""
        if self.dp_shard == 0:
            raise ValueError("parallel.dp_shard 0: at least 1 is wanted, or -1 for all ranks left over")
        others = {"dp_replicate": self.dp_replicate, "cp": self.cp, "tp": self.tp, "pp": self.pp}
        product = math.prod(others.values())
        said = " x ".join(f"{name} {degree}" for name, degree in others.items())
        if self.dp_shard == -1 and world_size % product:
            raise ValueError(
                f"parallel: {said} = {product} does not divide {world_size} ranks: "
                f"set ranks to a multiple of {product}, or lower a degree"
            )
        dp_shard = world_size // product if self.dp_shard == -1 else self.dp_shard
        if product * dp_shard != world_size:
            raise ValueError(
                f"parallel: dp_shard {dp_shard} x {said} = {product * dp_shard}, but there are {world_size} ranks: "
                f"set ranks to {product * dp_shard}, or dp_shard to -1"
            )
        return Degrees(self.pp, self.dp_replicate, dp_shard, self.cp, self.tp)

    def check_heads(self, num_heads: int, num_kv_heads: int, intermediate_size: int) -> None:
        sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "intermediate_size": intermediate_size}
        for name, size in sizes.items():
            if size % self.tp:
                raise ValueError(
                    f"model.{name} {size} cannot be shared by tp {self.tp} ranks: make it a multiple, or lower parallel.tp"
                )

    def check_pipeline(self, num_layers: int, rows: int) -> None:
        """`rows`: of one rank in a step."""
        if self.pp == 1:
            return
        if num_layers < self.num_stages:
            raise ValueError(
                f"model.num_layers {num_layers} is fewer than {self.num_stages} pipeline stages "
                f"({self.schedule} on {self.pp} ranks): lower parallel.pp, or choose another schedule"
            )
        count = self.pp_micro_batches
        if rows % count:
            raise ValueError(
                f"{rows} sequences of a rank cannot be cut into {count} micro-batches: "
                "set parallel.pp_micro_batches to a divisor"
            )
        if self.schedule != "gpipe" and (count < self.pp or count % max(1, count // self.pp)):
            raise ValueError(
                f"parallel.pp_micro_batches {count}: {self.schedule} on {self.pp} ranks wants a multiple of {self.pp}"
            )

    def check_strategy(self, precision: str) -> None:
        if self.strategy == "ddp" and (self.tp > 1 or self.pp > 1):
            raise ValueError(
                f"parallel.strategy ddp with tp {self.tp} and pp {self.pp}: copies of cut weights are not supported; "
                "set strategy to fsdp"
            )
        cut = [name for name in ("tp", "cp", "pp") if getattr(self, name) > 1]
        if self.compile and cut:
            raise ValueError(
                f"parallel.compile true with {cut[0]} {getattr(self, cut[0])}: compiled blocks were only shown to be right "
                "under fsdp and ddp; set compile to false"
            )
        if self.strategy == "ddp" and precision != "fp32":
            raise ValueError(f"parallel.strategy ddp trains in fp32, not {precision}: set strategy to fsdp")
        if self.strategy == "ddp" and self.offload:
            raise ValueError("parallel.offload wants strategy fsdp: ddp keeps all weights on the device")
