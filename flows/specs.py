"""The whole night as one frozen model: YAML preset, `--set a.b=c` and the form in the Prefect UI are all this."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from spark_jobs.errors import RequestError
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


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_spec(preset: str, settings: list[str]) -> NightlySpec:
    """A preset by name, or a YAML file by path, with `a.b=c` settings applied on top.

    Raises: RequestError naming the preset, key or value that is wrong, and what was wanted.
    """
    tree = _read_preset(preset)
    for setting in settings:
        _apply(tree, setting)
    return validate_spec(tree)


def validate_spec(tree: dict[str, Any]) -> NightlySpec:
    try:
        return NightlySpec.model_validate(tree)
    except ValidationError as err:
        raise RequestError("\n".join(_explain(problem) for problem in err.errors())) from err


def _read_preset(preset: str) -> dict[str, Any]:
    path = PRESETS / f"{preset}.yaml" if preset in preset_names() else Path(preset)
    if not path.is_file():
        raise RequestError(f"preset {preset!r}: neither one of {', '.join(preset_names())} nor a YAML file")
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as err:
        raise RequestError(f"{path}: not YAML: {err}") from err
    if not isinstance(tree, dict):
        raise RequestError(f"{path}: wanted keys like `name:` and `train:`, found {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], setting: str) -> None:
    name, equals, value = setting.partition("=")
    if not equals or not name:
        raise RequestError(f"--set {setting!r}: wanted a.b=value, for example train.num_steps=50")
    *sections, last = name.split(".")
    branch: Any = tree
    for section in sections:
        branch = branch[int(section)] if isinstance(branch, list) else branch.setdefault(section, {})
        if not isinstance(branch, dict | list):
            raise RequestError(f"--set {setting!r}: {section} is a value, not a section")
    if isinstance(branch, list):
        branch[int(last)] = yaml.safe_load(value)
    else:
        branch[last] = yaml.safe_load(value)


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "spec"
    if problem["type"] == "extra_forbidden":
        known = _fields_beside(problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: no such setting; {hint}"
    return f"{where}: {problem['msg']}, got {problem['input']!r}"


def _fields_beside(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section in which a misspelt key stands."""
    model: Any = NightlySpec
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = inner[0] if inner else annotation
    return list(model.model_fields)
