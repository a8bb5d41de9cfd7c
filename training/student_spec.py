"""Where a student comes from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from spark_jobs.manifests import Frozen
from training.finetune_spec import ImportModelSpec
from training.specs import ModelSpec


class CutSpec(Frozen):
    """Some of the teacher's blocks, with its embeddings and head: weights to begin with."""

    num_layers: int = Field(ge=1, description="Blocks that are kept.")
    blocks: Literal["spread", "lowest"] = Field(
        "spread",
        description="spread: the last of each num_layers equal groups, every k-th of k times as many. lowest: the first ones.",
    )


class MadeStudentSpec(Frozen):
    """A student that is made from its teacher: its blocks, or its vocabulary alone."""

    cut: CutSpec | None = Field(None, description="From blocks of the teacher.")
    new: ModelSpec | None = Field(
        None, description="From scratch: architecture, width, depth. Only the vocabulary is the teacher's."
    )
    seed: int = Field(0, ge=0, description="Of a new student's weights.")

    @model_validator(mode="after")
    def one_way(self) -> Self:
        if (self.cut is None) == (self.new is None):
            raise ValueError("student: one of cut, new is wanted")
        return self


class StudentSpec(Frozen):
    """One of three: an imported model, blocks of the teacher, or a new model."""

    base: ImportModelSpec | None = Field(None, description="Any model with the teacher's vocabulary.")
    cut: CutSpec | None = Field(None, description="From blocks of the teacher.")
    new: ModelSpec | None = Field(
        None, description="From scratch: architecture, width, depth; weights by finetune.seed."
    )

    @model_validator(mode="after")
    def one_way(self) -> Self:
        given = [name for name in ("base", "cut", "new") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"student: one of base, cut, new is wanted, got {', '.join(given) or 'none'}")
        return self
