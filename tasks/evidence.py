"""The evidence behind a decision about the champion: copies of the manifests it rests on, in one folder with digests.

A manifest holds the sha256 of its output's files and the digests of its parents, so the bundle says to the byte what was judged, by
what and on what, also after the outputs themselves were deleted: its own manifest names none of them, so it keeps none. It is
addressed by its content: made twice, it is one folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from spark_jobs.manifests import MANIFEST, Corpus, FileEntry, Parent, file_sha256
from tasks.locks import held
from tasks.workspace import Workspace
from training.manifests import Evidence, ModelFolder, Verdict

INDEX = "index.json"
LOCK_WAIT_S = 120.0
DEPTH = 2  # the verdict, its scorecards, and what those were made from


def bundle(workspace: Workspace, candidate: ModelFolder, verdict: Verdict, corpus: Corpus) -> Evidence:
    """The bundle of one verdict, made if it is not there. What was deleted since is left out; its digest is in its child's manifest."""
    name = f"evidence-{verdict.key}"
    with held(workspace.lock(name), LOCK_WAIT_S):
        attempt = workspace.attempt(name)
        shutil.rmtree(attempt, ignore_errors=True)  # of a run that was killed
        _copy_all(workspace, attempt / "data", candidate, verdict, corpus)
        evidence = _described(attempt, verdict)
        target = workspace.at(evidence.address)
        if (target / MANIFEST).is_file():
            shutil.rmtree(attempt)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            attempt.rename(target)
    return Evidence.load(target)


def _copy_all(workspace: Workspace, data: Path, candidate: ModelFolder, verdict: Verdict, corpus: Corpus) -> None:
    data.mkdir(parents=True)
    index = list(_copies(workspace, data, candidate, verdict, corpus))
    told = {entry.role: {"address": entry.address, "sha256": entry.digest} for entry in index}
    (data / INDEX).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    for path in map(Path, verdict.paths()):
        copy = data / "verdict" / path.relative_to(verdict.folder())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _described(attempt: Path, verdict: Verdict) -> Evidence:
    """The manifest of what lies in `attempt`, written there."""
    files = tuple(
        FileEntry(path=str(path.relative_to(attempt)), size_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted((attempt / "data").rglob("*"))
        if path.is_file()
    )
    evidence = Evidence(
        step="evidence", key=_key(files), night=verdict.night, format="json",
        num_rows=len(list((attempt / "data").glob("*.json"))) - 1, files=files, spec={}, code={}, libraries={},
        decision=verdict.decision,
    )  # fmt: skip
    (attempt / MANIFEST).write_text(evidence.canonical())
    return evidence


def _copies(
    workspace: Workspace, data: Path, candidate: ModelFolder, verdict: Verdict, corpus: Corpus
) -> Iterator[Parent]:
    """Copy each manifest once; the role tells the way to it, e.g. `verdict.champion.model`."""
    seen: set[str] = set()
    level = [
        Parent(role=role, address=handle.address, digest=handle.digest)
        for role, handle in (("candidate", candidate), ("verdict", verdict), ("corpus", corpus))
    ]
    level += [entry.model_copy(update={"role": "report"}) for entry in _report(workspace, verdict)]
    for _ in range(1 + DEPTH):
        below: list[Parent] = []
        for entry in level:
            manifest = workspace.at(entry.address) / MANIFEST
            if entry.address in seen or not manifest.is_file():
                continue
            seen.add(entry.address)
            text = manifest.read_bytes()
            (data / f"{entry.role}.json").write_bytes(text)
            yield entry
            if not entry.address.startswith(Corpus.kind + "/"):  # which names its nights itself, however many
                below += [
                    Parent(role=f"{entry.role}.{up['role']}", address=up["address"], digest=up["digest"])
                    for up in json.loads(text)["parents"]
                ]
        level = below


def _report(workspace: Workspace, verdict: Verdict) -> list[Parent]:
    """The page about this verdict, if its night has made it."""
    entry = workspace.record(verdict.night).outputs.get("report-evaluation")
    manifest = workspace.at(entry.address) / MANIFEST if entry else None
    if entry is None or manifest is None or not manifest.is_file():
        return []
    return [entry] if verdict.digest in {up["digest"] for up in json.loads(manifest.read_text())["parents"]} else []


def _key(files: tuple[FileEntry, ...]) -> str:
    return hashlib.sha256("".join(f"{f.path} {f.sha256}\n" for f in files).encode()).hexdigest()[:16]
