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
from tasks.retention_spec import RetentionSpec
from tasks.schedule_spec import ScheduleSpec
from tasks.specs import ReleaseSpec
from training.gate_spec import GateSpec
from training.specs import CompressSpec, EvaluateSpec, TrainSpec
from training.watch.spec import WatchSpec

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
    watch: WatchSpec = WatchSpec()
    retention: RetentionSpec = RetentionSpec()
    schedule: ScheduleSpec = ScheduleSpec()

    @model_validator(mode="after")
    def recipes_fit_the_model(self) -> NightlySpec:
        """Before a night is spent on training a model that its recipes cannot be followed on."""
        model, parallel, way_out = self.train.model, self.train.parallel, "change it, or set compress.recipes to []"
        for recipe in self.compress.recipes:
            if self.train.objective != "causal_lm" or model.architecture == "gpt2":
                told = f"a {model.architecture} trained for {self.train.objective} is not compressed"
                raise ValueError(f"compress.recipes {recipe.name}: {told}; set compress.recipes to []")
            widths = {"train.model.hidden_size": model.hidden_size, "intermediate_size": model.intermediate_size}
            wrong = recipe.misfit(widths) if not model.overrides else ""
            if recipe.recover is not None and max(parallel.tp, parallel.pp, parallel.cp) > 1:
                wrong = "recover does not go with train.parallel.tp, pp or cp"
            if wrong:
                raise ValueError(f"compress.recipes {recipe.name}: {wrong}; {way_out}")
        return self

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
