"""Benchmarks of one model as one frozen spec: YAML preset, `--set a.b=c` and the form in the Prefect UI are all this."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from flows.spec_files import load_preset, presets_in
from spark_jobs.manifests import Frozen
from training.benchmark_spec import BenchmarkSpec, check_names
from training.finetune_spec import ImportModelSpec

PRESETS = Path(__file__).parent / "presets" / "evaluate"


class EvaluateRunSpec(Frozen):
    """A model, and what is asked of it."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Workspace, and experiment in MLflow. That of model.pipeline: its champion is asked where it lies, and the "
        "corpus it was trained on is searched for the benchmarks' items.",
    )
    model: ImportModelSpec
    benchmarks: tuple[BenchmarkSpec, ...] = Field(min_length=1, description="docs/evaluation.md.")

    @model_validator(mode="after")
    def names_differ(self) -> Self:
        check_names(self.benchmarks)
        return self


def load_evaluate_spec(preset: str, settings: list[str]) -> EvaluateRunSpec:
    """See `flows.spec_files.load_preset`."""
    return load_preset(EvaluateRunSpec, PRESETS, preset, settings)


def evaluate_preset_names() -> list[str]:
    return presets_in(PRESETS)
