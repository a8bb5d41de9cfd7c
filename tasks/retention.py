"""Which outputs of a workspace nobody needs any more, and their removal.

Needed are: every output of the newest nights, and of the newest one with a corpus; the newest champions with all they were
made from and the evidence they were judged by; whatever is young; and whatever the manifest of something needed names. A
model that something else than a model names (a training that went on from it, a verdict that compared with it) stays, but not
what that model was made from: or no champion's checkpoint would ever go.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spark_jobs.errors import StepBusy
from spark_jobs.manifests import MANIFEST, Frozen
from tasks.ledger import read_ledger
from tasks.locks import held, is_live
from tasks.retention_spec import RetentionSpec
from tasks.workspace import Workspace

LOCK = "maintenance"
MODELS = "models/"
EVIDENCE = "evidence/"  # copies of manifests, small, that name nothing
WATCHED = "watch-reports/"
ITSELF = "named by"


class Removal(Frozen):
    """One folder, relative to the workspace, to be removed or removed."""

    path: str
    what: str
    size_bytes: int


@dataclass(frozen=True)
class RetentionPlan:
    """kept: address of each output that stays, and why. removed: what goes, largest first."""

    kept: dict[str, str]
    removed: tuple[Removal, ...]

    @property
    def freed_bytes(self) -> int:
        return sum(removal.size_bytes for removal in self.removed)


@dataclass
class Outputs:
    """All published outputs of a workspace by address, with the parsed manifest of each."""

    workspace: Workspace
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, workspace: Workspace) -> Outputs:
        found = cls(workspace)
        for path in sorted(workspace.root.glob(f"*/*/{MANIFEST}")):
            try:
                found.manifests[f"{path.parent.parent.name}/{path.parent.name}"] = json.loads(path.read_text())
            except (json.JSONDecodeError, FileNotFoundError):  # damaged: its step runs again, nothing can follow it
                continue
        return found

    def named_by(self, address: str) -> list[str]:
        """Addresses of other outputs that this one's manifest names."""
        told = {text for name, value in self.manifests[address].items() if name != "spec" for text in _strings(value)}
        return sorted(told & self.manifests.keys() - {address})

    def age_hours(self, address: str, now_s: float) -> float:
        return (now_s - (self.workspace.at(address) / MANIFEST).stat().st_mtime) / 3600


def plan_retention(workspace: Workspace, spec: RetentionSpec, now_s: float | None = None) -> RetentionPlan:
    """What would stay and what would go. Reads manifests, records and the ledger; writes nothing.

    now_s: seconds since the epoch.
    """
    now_s = time.time() if now_s is None else now_s
    outputs = Outputs.of(workspace)
    kept: dict[str, str] = {}
    for address, why in _roots(outputs, spec, now_s):
        _keep(outputs, address, why, kept)
    for address in outputs.manifests:
        if address.startswith(EVIDENCE):  # copies of manifests: small, and complete without what they describe
            kept.setdefault(address, "evidence of a decision")
        if address.startswith(WATCHED):  # they too: the watch removes them itself, after `watch.keep_days`
            kept.setdefault(address, "report of the watch")
    removed = [_removal(workspace, address, "output") for address in outputs.manifests if address not in kept]
    removed += _left_over(workspace, spec, now_s)
    return RetentionPlan(kept, tuple(sorted(removed, key=lambda r: (-r.size_bytes, r.path))))


def remove(workspace: Workspace, spec: RetentionSpec) -> RetentionPlan:
    """Carry the plan out. Each folder leaves its address by one rename before its files go, so that no reader sees half.

    Raises: StepBusy while a step of this workspace runs: it may be reading what would go.
    """
    with held(workspace.lock(LOCK)):
        busy = [path.stem for path in workspace.lock("x").parent.glob("*.json") if path.stem != LOCK and is_live(path)]
        if busy:
            raise StepBusy(
                f"maintenance: {busy[0]} of {workspace.name} is running, and may read what would be removed; run again later"
            )
        plan = plan_retention(workspace, spec)
        graves = workspace.root / "attempts" / ".removed"
        shutil.rmtree(graves, ignore_errors=True)  # of a maintenance that was killed
        graves.mkdir(parents=True, exist_ok=True)
        for number, removal in enumerate(plan.removed):
            (workspace.root / removal.path).rename(graves / str(number))
        shutil.rmtree(graves)
        _note_in_records(workspace, {removal.path for removal in plan.removed})
    return plan


def _roots(outputs: Outputs, spec: RetentionSpec, now_s: float) -> Iterator[tuple[str, str]]:
    workspace = outputs.workspace
    nights = workspace.nights()
    newest_corpus = [night for night in nights if "corpus" in workspace.record(night).outputs][-1:]
    for night in sorted({*nights[-spec.keep_nights :], *newest_corpus}, reverse=True):
        for parent in workspace.record(night).outputs.values():
            yield parent.address, f"of night {night}"
    for address in _crowned(workspace, spec.keep_champions):
        yield address, "champion, or evidence of one"
    for address in outputs.manifests:
        if outputs.age_hours(address, now_s) < spec.keep_hours:
            yield address, f"younger than {spec.keep_hours:g} hours"


def _crowned(workspace: Workspace, count: int) -> Iterator[str]:
    """The newest `count` different champions and the evidence of the decisions that made them so."""
    seen: list[str] = []
    for line in reversed(read_ledger(workspace)):
        if not line.champion or (line.champion not in seen and len(seen) == count):
            continue
        if line.champion not in seen:
            seen.append(line.champion)
            yield line.champion
        if line.candidate == line.champion and line.evidence:
            yield line.evidence


def _keep(outputs: Outputs, root: str, why: str, kept: dict[str, str]) -> None:
    """`root` and all that is named from it. `kept` says of a model that was kept for itself alone by whom it is named."""
    open_ends = [root]
    while open_ends:
        address = open_ends.pop()
        if address not in outputs.manifests or not kept.get(address, ITSELF).startswith(ITSELF):
            continue
        kept[address] = why
        for named in outputs.named_by(address):
            if named.startswith(MODELS) and not address.startswith(MODELS):
                kept.setdefault(named, f"{ITSELF} {address}")
            else:
                open_ends.append(named)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _strings(child)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child)


def _left_over(workspace: Workspace, spec: RetentionSpec, now_s: float) -> list[Removal]:
    """Attempts that nobody goes on with, and old logs."""
    found = []
    for path in _folders(workspace.root / "attempts"):
        if _age_days(path, now_s) * 24 > spec.keep_hours and not path.name.startswith("."):
            found.append(_removal(workspace, f"attempts/{path.name}", "attempt"))
    for path in _folders(workspace.root / "logs"):
        if _age_days(path, now_s) > spec.log_days:
            found.append(_removal(workspace, f"logs/{path.name}", "logs"))
    return found


def _folders(parent: Path) -> Iterable[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else ()


def _age_days(folder: Path, now_s: float) -> float:
    """Since anything in it was written last."""
    newest = max((path.stat().st_mtime for path in (folder, *folder.rglob("*"))), default=now_s)
    return (now_s - newest) / 86400


def _removal(workspace: Workspace, path: str, what: str) -> Removal:
    size = sum(file.stat().st_size for file in (workspace.root / path).rglob("*") if file.is_file())
    return Removal(path=path, what=what, size_bytes=size)


def _note_in_records(workspace: Workspace, gone: set[str]) -> None:
    for night in workspace.nights():
        workspace.retire(night, gone)
