"""What a step is, what its output will be called, and why it has to run (or does not).

key = sha256(name, spec, digests of the input manifests, digests of the code, versions of the libraries)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import BaseModel

from spark_jobs.errors import DataError
from spark_jobs.manifests import MANIFEST, Handle, Parent
from spark_jobs.requests import Outcome
from tasks.application import AppName
from tasks.fingerprints import code_digests, library_versions
from tasks.workspace import Workspace

H = TypeVar("H", bound=Handle)
PLANNED = "planned"


@dataclass(frozen=True)
class Step(Generic[H]):
    """One step of a night.

    handle: type of the output. entry: module whose code (with what it imports) decides the result; entries: further ones,
    where a step is several jobs. libraries: distributions that can change the result. app: which child process runs it;
    `inline` steps run `work` in this process. dated: the night itself is part of the key. seconds: how long the job may
    take before it is stopped.
    """

    name: str
    handle: type[H]
    entry: str
    spec: BaseModel
    night: str
    inputs: dict[str, Handle] = field(default_factory=dict)
    entries: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    app: AppName | Literal["inline"] = "inline"
    job: str = ""
    work: Callable[[Path], Outcome] | None = None
    dated: bool = False
    deadline_s: float = 24 * 3600.0

    @property
    def parents(self) -> tuple[Parent, ...]:
        return tuple(
            Parent(role=role, address=handle.address, digest=handle.digest)
            for role, handle in sorted(self.inputs.items())
        )

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as it also stands in the manifest; fields that a spec calls `unkeyed` do not."""
        unkeyed: frozenset[str] = getattr(type(self.spec), "unkeyed", frozenset())
        return {
            "step": self.name,
            "night": self.night if self.dated else "",
            "spec": self.spec.model_dump(mode="json", exclude=set(unkeyed)),
            "parents": {p.role: p.digest for p in self.parents},
            "code": {m: d for entry in (self.entry, *self.entries) for m, d in code_digests(entry).items()},
            "libraries": library_versions(self.libraries),
        }

    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:16]

    def address(self) -> str:
        return f"{self.handle.kind}/{self.name}-{self.key()}"

    def planned(self) -> H:
        """A stand-in for the output of a step that has not run, for `plan`. Its data fields do not exist."""
        fields: dict[str, Any] = {
            "step": self.name,
            "key": PLANNED,
            "night": self.night,
            "num_rows": -1,
            "success": True,
        }
        return cast("H", self.handle.model_construct(**fields))

    def waits_for(self) -> list[str]:
        return sorted({handle.step for handle in self.inputs.values() if handle.key == PLANNED})


def find(step: Step[H], workspace: Workspace) -> tuple[H | None, str]:
    """The step's finished output, or None; and why it is (not) there, in words for the step table."""
    uri = workspace.at(step.address())
    if not (uri / MANIFEST).is_file():
        return None, why_run(step, workspace)
    try:
        return step.handle.load(uri), "spec, inputs, code and libraries unchanged"
    except DataError as err:
        return None, f"output damaged: {err}"


def why_run(step: Step[Any], workspace: Workspace) -> str:
    """What changed since the last time this step ran in this workspace."""
    latest = _latest(step, workspace)
    if latest is None:
        return "first run"
    changes = list(_changes(latest, step))
    return "; ".join(changes) if changes else "output is gone"


def _latest(step: Step[Any], workspace: Workspace) -> Handle | None:
    """Newest readable output of the same step. By time of publishing: this is for the reader, no key depends on it."""
    manifests = workspace.at(step.handle.kind).glob(f"{step.name}-*/{MANIFEST}")
    for path in sorted(manifests, key=lambda p: p.stat().st_mtime, reverse=True):
        if path.parent.name.rsplit("-", 1)[0] != step.name:
            continue
        try:
            handle: Handle = step.handle.load(path.parent)
        except DataError:
            continue
        return handle
    return None


def _changes(before: Handle, step: Step[Any]) -> list[str]:
    now = step.identity()
    changes = []
    if step.dated and before.night != step.night:
        changes.append(f"night {before.night} -> {step.night}")
    old_spec, new_spec = _flat(before.spec), _flat(now["spec"])
    for name in sorted(old_spec.keys() | new_spec.keys()):
        if old_spec.get(name) != new_spec.get(name):
            changes.append(f"spec {name} {_short(old_spec.get(name))} -> {_short(new_spec.get(name))}")
    old_parents = {p.role: p.digest for p in before.parents}
    changed = [
        role
        for role in sorted(old_parents.keys() | now["parents"].keys())
        if old_parents.get(role) != now["parents"].get(role)
    ]
    if changed:
        changes.append("input " + ", ".join(changed))
    for what, old, new in (("code", before.code, now["code"]), ("library", before.libraries, now["libraries"])):
        names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if names:
            changes.append(f"{what} " + ", ".join(names))
    return changes


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        children = [(f"{prefix}.{name}" if prefix else name, child) for name, child in tree.items()]
    elif isinstance(tree, list):
        children = [(f"{prefix}[{index}]", child) for index, child in enumerate(tree)]
    else:
        return {prefix: tree}
    return {name: value for path, child in children for name, value in _flat(child, path).items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
