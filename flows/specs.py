"""The whole night as one frozen model: YAML preset, `--set a.b=c` and the form in the Prefect UI are all this."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from flows.spec_files import load_preset, presets_in
from spark_jobs.manifests import Frozen
from spark_jobs.specs import (
    CheckSpec,
    CleanSpec,
    DecontaminateSpec,
    DedupSpec,
    IngestSpec,
    SnapshotSpec,
    TokenizerSpec,
    TokenizeSpec,
)
from tasks.specs import ReleaseSpec
from training.specs import CompressSpec, EvaluateSpec, GateSpec, TrainSpec

PRESETS = Path(__file__).parent / "presets"


class NightlySpec(Frozen):
    """From raw text to a champion. Each section belongs to one step."""

    name: str = Field(
        "demo",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="Pipeline, and name of its registered model. Lower-case letters, digits, dashes.",
    )
    ingest: IngestSpec = IngestSpec()
    clean: CleanSpec = CleanSpec()
    dedup: DedupSpec = DedupSpec()
    decontaminate: DecontaminateSpec = DecontaminateSpec()
    check: CheckSpec = CheckSpec()
    tokenizer: TokenizerSpec = TokenizerSpec()
    tokenize: TokenizeSpec = TokenizeSpec()
    snapshot: SnapshotSpec = SnapshotSpec()
    train: TrainSpec = TrainSpec()
    compress: CompressSpec = CompressSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    gate: GateSpec = GateSpec()
    release: ReleaseSpec = ReleaseSpec()

    @model_validator(mode="after")
    def candidate_is_made(self) -> NightlySpec:
        known = ["best", "dense", *(recipe.name for recipe in self.compress.recipes)]
        if self.gate.candidate not in known:
            raise ValueError(f"gate.candidate {self.gate.candidate!r} is none of tonight's models: {', '.join(known)}")
        return self


def preset_names() -> list[str]:
    return presets_in(PRESETS)


def load_spec(preset: str, settings: list[str]) -> NightlySpec:
    """See `flows.spec_files.load_preset`."""
    return load_preset(NightlySpec, PRESETS, preset, settings)
