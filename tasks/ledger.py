"""Every decision about the champion, one JSON line each, never rewritten. MLflow's alias has no memory; this has."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from spark_jobs.manifests import Frozen
from tasks.workspace import Workspace, append_line


class LedgerLine(Frozen):
    """who: user and host, or the flow run. evidence: address and digest of the verdict."""

    night: str
    decision: Literal["promoted", "kept", "rolled back"]
    why: str
    who: str
    when: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    candidate: str
    candidate_digest: str
    champion: str
    champion_digest: str
    champion_version: str
    previous_champion: str = ""
    previous_version: str = ""
    evidence: str
    evidence_digest: str


class Champion(Frozen):
    """The model folder that answered to `champion` at some time, and its version in the registry."""

    address: str
    digest: str
    version: str
    night: str


def read_ledger(workspace: Workspace) -> list[LedgerLine]:
    if not workspace.ledger.is_file():
        return []
    return [LedgerLine.model_validate_json(line) for line in workspace.ledger.read_text().splitlines() if line.strip()]


def champion_before(workspace: Workspace, night: str) -> Champion | None:
    """The champion after all decisions of nights strictly before `night`: what training goes on from."""
    return _last_champion(line for line in read_ledger(workspace) if line.night < night)


def champion_now(workspace: Workspace) -> Champion | None:
    return _last_champion(read_ledger(workspace))


def champion_to_beat(workspace: Workspace, candidate: str, night: str) -> Champion | None:
    """The champion as of `night`, as if no decision on `candidate` (an address) had been taken: a gate run again asks the
    same question, and the gate of a changed night is against what its first run promoted.
    """
    lines = read_ledger(workspace)
    return _last_champion(line for line in lines if line.candidate != candidate and line.night <= night)


def decided_after(workspace: Workspace, night: str) -> str:
    """The newest later night that has a decision; empty if there is none. An older night no longer moves the champion."""
    return max((line.night for line in read_ledger(workspace) if line.night > night), default="")


def _last_champion(lines: Iterable[LedgerLine]) -> Champion | None:
    crowned = [line for line in lines if line.champion]
    if not crowned:
        return None
    last = crowned[-1]
    return Champion(address=last.champion, digest=last.champion_digest, version=last.champion_version, night=last.night)


def write_decision(workspace: Workspace, line: LedgerLine) -> bool:
    """Append unless the same decision on the same evidence is there already (a run repeated after a kill)."""
    for known in read_ledger(workspace):
        if (known.night, known.evidence_digest, known.decision) == (line.night, line.evidence_digest, line.decision):
            return False
    append_line(workspace.ledger, line.model_dump(mode="json"))
    return True
