"""What benchmarks are asked of a model. Pydantic only, as the forms show it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from spark_jobs.manifests import Frozen

NAME = r"^[a-z0-9][a-z0-9_-]{0,40}$"  # a part of step names and of folders


class HarnessSpec(Frozen):
    """Tasks of lm-evaluation-harness, from YAML files and data on this machine: nothing is downloaded."""

    tasks: tuple[str, ...] = Field(min_length=1, description="Names of tasks or groups that include_path defines.")
    include_path: str = Field(min_length=1, description="Folder of the tasks' YAML files.")


class BenchmarkSpec(Frozen):
    """One benchmark: a folder with task.yaml (docs/evaluation.md), or tasks of lm-evaluation-harness."""

    name: str = Field(pattern=NAME, description="What it is called in scores. Lower-case letters, digits, - and _.")
    folder: str = Field("", description="Folder with task.yaml.")
    harness: HarnessSpec | None = Field(None, description="Or tasks of lm-evaluation-harness.")
    data: str = Field("", description="Folder of the files that task.yaml names; empty: the folder of task.yaml.")
    num_fewshot: int | None = Field(None, ge=0, le=64, description="Examples before each item; none: as the task says.")
    max_items: int = Field(0, ge=0, description="At most so many items, the first of the file; 0: all.")
    beginning: Literal["always", "tokenizer"] = Field(
        "always",
        description="Token before a context. always: the model's beginning-of-text token, as in training. tokenizer: what the "
        "folder's own tokenizer puts there, as lm-evaluation-harness does. An empty context always has one.",
    )
    batch_tokens: int = Field(4096, ge=64, description="Positions computed at once; changes speed, not numbers.")
    shards: int = Field(1, ge=1, le=1024, description="Parts that are asked apart, and on Dask side by side.")
    max_nonfinite: int = Field(
        0,
        ge=0,
        description="More items than this without a finite answer refuse the run; up to it they count as wrong.",
    )
    overlap_tokens: int = Field(
        13, ge=0, le=64,
        description="An item that shares so many consecutive tokens with a training sequence is contaminated; 0: not looked at.",
    )  # fmt: skip
    seed: int = Field(0, ge=0, description="Of the draw of examples, and of intervals.")

    @model_validator(mode="after")
    def one_source(self) -> Self:
        if bool(self.folder) == (self.harness is not None):
            raise ValueError(f"benchmark {self.name}: wanted one of folder and harness")
        if self.harness is not None and self.shards > 1:
            raise ValueError(
                f"benchmark {self.name}: harness tasks are one shard, got shards {self.shards}; set it to 1"
            )
        if self.harness is not None and self.data:
            raise ValueError(f"benchmark {self.name}: harness tasks name their data themselves; leave data out")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Of the answers of its shards, as inputs of the scoring step."""
        return tuple(f"answers.{self.name}.{shard}" for shard in range(self.shards))


class AnswerJobSpec(Frozen):
    """One shard of a benchmark. digests: sha256 of each file it reads, so that a changed one is another request."""

    benchmark: BenchmarkSpec
    shard: int = 0
    digests: dict[str, str] = Field(default_factory=dict)


class BenchmarksJobSpec(Frozen):
    """Benchmarks whose answers are there, or whose items are compared with a corpus. digests: see `AnswerJobSpec`."""

    benchmarks: tuple[BenchmarkSpec, ...]
    digests: dict[str, str] = Field(default_factory=dict)


def check_names(benchmarks: tuple[BenchmarkSpec, ...]) -> None:
    """Raises: ValueError if two have one name."""
    names = [benchmark.name for benchmark in benchmarks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"benchmarks: {twice[0]!r} names more than one; give each its own name")
