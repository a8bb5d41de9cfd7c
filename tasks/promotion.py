"""Decisions by hand: make a registered model champion, or go back to one that was. Checked before anything moves.

A person's decision has the newest night decided until then: nights after it train from, and compare with, what it made champion; a
rerun of that night or of an older one moves nothing any more.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from spark_jobs.errors import DataError, RequestError
from spark_jobs.manifests import MANIFEST, Corpus, Handle
from tasks.actor import current_actor
from tasks.application import Application
from tasks.approval import the_awaiting
from tasks.champion import LOCK_WAIT_S, decide, deciding
from tasks.evidence import bundle
from tasks.ledger import (
    LedgerLine,
    awaiting,
    champion_now,
    line_of_reign,
    read_ledger,
    withdrawn,
)
from tasks.locks import Lock, held
from tasks.model_check import check_model
from tasks.retention import LOCK as MAINTENANCE
from tasks.specs import ReleaseSpec
from tasks.workspace import Workspace
from training.manifests import ModelFolder, Release, Verdict


@dataclass(frozen=True)
class Target:
    """A registered model, and what was judged of it."""

    release: Release
    model: ModelFolder
    verdict: Verdict
    corpus: Corpus

    @property
    def version(self) -> str:
        return self.release.model_version


def promote(
    workspace: Workspace, target: Target, why: str, force: bool, spec: ReleaseSpec, torch: Application, who: str = ""
) -> LedgerLine | None:
    """Make the target champion; None if it is already.

    Raises: RequestError if it was judged otherwise and `force` does not say to do it all the same; DataError or QualityError if the
    model is not what was published or does not speak; StepBusy.
    """
    now = champion_now(workspace)
    if now is not None and now.address == target.model.address:
        return None
    _refuse_unwanted(workspace, target, force)
    check_model(torch, target.model, _digest_of(target.release, "candidate"), target.release.night, spec)
    evidence = bundle(workspace, target.model, target.verdict, target.corpus)
    with _no_maintenance(workspace), deciding(workspace) as fence:
        _refuse_unwanted(workspace, target, force)
        _model(workspace, target.model.address, target.version)
        before = champion_now(workspace)
        line = LedgerLine(
            night=_night(workspace, target.release.night), decision="promoted", by="hand", why=why, who=who or current_actor(),
            candidate=target.model.address, candidate_digest=target.model.digest, candidate_version=target.version,
            champion=target.model.address, champion_digest=target.model.digest, champion_version=target.version,
            previous_champion=before.address if before else "", previous_version=before.version if before else "",
            evidence=target.verdict.address, evidence_digest=target.verdict.digest, bundle=evidence.address,
            bundle_digest=evidence.digest,
        )  # fmt: skip
        return decide(fence, line)


def roll_back(workspace: Workspace, version: str, why: str, spec: ReleaseSpec, torch: Application) -> LedgerLine:
    """Restore the champion before the present one, or the earlier one with that version. The one that goes is not promoted again
    but by hand and force.

    Raises: RequestError if there is none; DataError or QualityError if the earlier model is not what it was; StepBusy.
    """
    restored = earlier_champion(workspace, version)
    model = _model(workspace, restored.champion, restored.champion_version)
    check_model(torch, model, restored.champion_digest, restored.night, spec)
    with _no_maintenance(workspace), deciding(workspace) as fence:
        _model(workspace, restored.champion, restored.champion_version)
        before = champion_now(workspace)
        if before is None or earlier_champion(workspace, version) != restored:
            raise RequestError(
                f"{workspace.name}: the champion changed while its predecessor was checked; look at it and run again"
            )
        line = LedgerLine(
            night=_night(workspace, restored.night), decision="rolled back", by="hand", why=why, who=current_actor(),
            candidate=before.address, candidate_digest=before.digest, candidate_version=before.version,
            champion=restored.champion, champion_digest=restored.champion_digest, champion_version=restored.champion_version,
            previous_champion=before.address, previous_version=before.version, evidence=restored.evidence,
            evidence_digest=restored.evidence_digest, bundle=restored.bundle, bundle_digest=restored.bundle_digest,
        )  # fmt: skip
        return decide(fence, line)


def earlier_champion(workspace: Workspace, version: str = "") -> LedgerLine:
    """The promotion to go back to. Raises: RequestError naming the versions there are."""
    reign = line_of_reign(workspace)
    if not reign:
        raise RequestError(
            f"{workspace.name} has no champion yet, so there is nothing to go back from; run its nightly first"
        )
    earlier = [line for line in reign[:-1] if line.champion != reign[-1].champion]
    known = ", ".join(dict.fromkeys(f"{line.champion_version} ({line.night})" for line in reversed(earlier))) or "none"
    chosen = [line for line in earlier if not version or line.champion_version == version]
    if not chosen:
        asked = f"version {version} was not champion before the present one" if version else "it is the first champion"
        raise RequestError(
            f"{workspace.name}: the champion is version {reign[-1].champion_version}; {asked}. Earlier champions: {known}. "
            "Another registered version becomes champion by `nightmill promote`"
        )
    return chosen[-1]


def find_target(workspace: Workspace, night: str = "", version: str = "") -> Target:
    """By night, by version, or what awaits approval. Raises: RequestError naming what there is; DataError if it was deleted."""
    if night:
        return _target(workspace, workspace.output(night, "release", Release, "release-model"))
    wanted = version or the_awaiting(workspace).candidate_version
    found = [release for release in releases(workspace) if release.model_version == wanted]
    if not found:
        known = ", ".join(sorted({r.model_version for r in releases(workspace)}, key=_by_number)) or "none yet"
        raise RequestError(f"{workspace.name} has no version {wanted} in {workspace.root}; it has {known}")
    return _target(workspace, found[-1])


def releases(workspace: Workspace) -> list[Release]:
    """All there are, by night, then by time of publishing."""
    paths = workspace.at(Release.kind).glob(f"*/{MANIFEST}")
    dated = [(path.stat().st_mtime, Release.load(path.parent)) for path in paths]
    return [release for _, release in sorted(dated, key=lambda entry: (entry[1].night, entry[0]))]


def _target(workspace: Workspace, release: Release) -> Target:
    model = _model(workspace, _address_of(release, "candidate"), release.model_version)
    verdict = Verdict.load(workspace.at(_address_of(release, "verdict")))
    return Target(release, model, verdict, Corpus.load(workspace.at(_address_of(release, "corpus"))))


def _model(workspace: Workspace, address: str, version: str) -> ModelFolder:
    """Raises: RequestError if its folder is gone; DataError if it is damaged."""
    if not workspace.at(address).is_dir():
        raise RequestError(
            f"version {version}: its folder {workspace.at(address)} is gone; maintenance keeps the newest champions "
            "(retention.keep_champions). Choose another version, or put the folder back from a backup"
        )
    return ModelFolder.load(workspace.at(address))


def _no_maintenance(workspace: Workspace) -> AbstractContextManager[Lock]:
    """Nothing is removed while a pointer moves to it."""
    return held(workspace.lock(MAINTENANCE), LOCK_WAIT_S)


def _refuse_unwanted(workspace: Workspace, target: Target, force: bool) -> None:
    """Raises: RequestError saying what speaks against it, unless that is to be overridden."""
    if force:
        return
    champion = champion_now(workspace)
    address = champion.address if champion else ""
    against = withdrawn(workspace, target.model.address)
    if not against and target.verdict.decision != "promote":
        against = f"its gate said {target.verdict.decision}: {target.verdict.reason}"
    if not against and target.verdict.champion != address:
        against = f"its gate compared it with {target.verdict.champion or 'no champion'}, the champion is {address or 'none'} now"
    waiting = awaiting(workspace)
    if not against and waiting is None and _has_expired(workspace, target.model.address):
        against = "its time to be approved is over"
    if against:
        raise RequestError(
            f"version {target.version} ({target.model.address}) is not promoted: {against}. To do it all the same, add --force"
        )


def _has_expired(workspace: Workspace, candidate: str) -> bool:
    about = [line for line in read_ledger(workspace) if line.candidate == candidate]
    return bool(about) and about[-1].decision == "expired"


def _night(workspace: Workspace, night: str) -> str:
    return max((line.night for line in read_ledger(workspace)), default=night)


def _digest_of(handle: Handle, role: str) -> str:
    parent = handle.parent(role)
    assert parent is not None
    return parent.digest


def _address_of(handle: Handle, role: str) -> str:
    parent = handle.parent(role)
    if parent is None:
        raise DataError(
            f"{handle.uri}: names no {role}; delete it and run release-model for night {handle.night} again"
        )
    return parent.address


def _by_number(version: str) -> tuple[int, str]:
    return (int(version) if version.isdigit() else 0, version)
