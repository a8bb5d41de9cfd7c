"""Presets and settings: a YAML file and `--set a.b=c` become a frozen spec, or a message that says what is wrong."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from spark_jobs.errors import RequestError

S = TypeVar("S", bound=BaseModel)


def presets_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_preset(kind: type[S], folder: Path, preset: str, settings: list[str]) -> S:
    """A preset of `folder` by name, or a YAML file by path, with `a.b=c` settings applied on top.

    Raises: RequestError naming the preset, key or value that is wrong, and what was wanted.
    """
    tree = _read_preset(folder, preset)
    for setting in settings:
        _apply(tree, setting)
    return validated(kind, tree)


def settings_tree(settings: list[str]) -> dict[str, Any]:
    """`a.b=c` settings alone, where there is no preset."""
    tree: dict[str, Any] = {}
    for setting in settings:
        _apply(tree, setting)
    return tree


def validated(kind: type[S], tree: dict[str, Any]) -> S:
    """Raises: RequestError, a line a problem."""
    try:
        return kind.model_validate(tree)
    except ValidationError as err:
        raise RequestError("\n".join(_explain(kind, problem) for problem in err.errors())) from err


def _read_preset(folder: Path, preset: str) -> dict[str, Any]:
    names = presets_in(folder)
    path = folder / f"{preset}.yaml" if preset in names else Path(preset)
    if not path.is_file():
        raise RequestError(f"preset {preset!r}: neither one of {', '.join(names)} nor a YAML file")
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


def _explain(kind: type[BaseModel], problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "spec"
    if problem["type"] == "extra_forbidden":
        known = _fields_beside(kind, problem["loc"])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: no such setting; {hint}"
    if isinstance(problem["input"], dict):  # a rule over several settings names them itself
        return f"{where}: {problem['msg']}"
    return f"{where}: {problem['msg']}, got {problem['input']!r}"


def _fields_beside(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section in which a misspelt key stands."""
    model: Any = kind
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = inner[0] if inner else annotation
    return list(model.model_fields)
