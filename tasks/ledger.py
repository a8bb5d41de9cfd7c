"""Every decision about the champion, one JSON line each, never rewritten. MLflow's alias has no memory; this has.

The ledger is the truth: MLflow's aliases and `champion.json` are written from it (`tasks.champion`). Appending a line is what
decides. Its `fence` rises from line to line; a line that came late, with a fence not above those before it, is void. Lines of versions
that had no fences carry 0 and count in their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from spark_jobs.manifests import Frozen
from tasks.workspace import Workspace, append_line
from training.champion_pointer import ChampionPointer

Decision = Literal["promoted", "kept", "rolled back", "awaiting", "rejected", "expired"]
CROWNING = ("promoted", "rolled back")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class LedgerLine(Frozen):
    """`candidate` is the model that the decision is about: of `rolled back`, the one that had to go. `champion` is the champion after
    it, `previous_champion` the one before."""

    night: str = Field(description="Logical night. A decision by hand has the newest night decided until then.")
    decision: Decision
    by: Literal["gate", "hand"] = Field("gate", description="gate: a night's release. hand: a person.")
    why: str
    who: str = Field(description="$NIGHTMILL_ACTOR, or user and host.")
    when: str = Field(default_factory=now, description="UTC.")
    fence: int = Field(0, ge=0, description="Rises from decision to decision. 0: written before there were fences.")
    candidate: str
    candidate_digest: str
    candidate_version: str = ""
    champion: str
    champion_digest: str
    champion_version: str
    previous_champion: str = ""
    previous_version: str = ""
    evidence: str = Field(description="Address of the verdict.")
    evidence_digest: str
    bundle: str = Field("", description="Address of the evidence bundle, which holds the manifests behind the verdict.")
    bundle_digest: str = ""
    until: str = Field("", description="Of `awaiting`: time (UTC) after which the champion stays.")


class Champion(Frozen):
    """The model folder that answered to `champion` at some time, and its version in the registry."""

    address: str
    digest: str
    version: str
    night: str


def read_ledger(workspace: Workspace) -> list[LedgerLine]:
    """The decisions that count, oldest first."""
    if not workspace.ledger.is_file():
        return []
    lines = [LedgerLine.model_validate_json(line) for line in workspace.ledger.read_text().splitlines() if line.strip()]
    return without_late_ones(lines)


def without_late_ones(lines: Iterable[LedgerLine]) -> list[LedgerLine]:
    """Leave out what a writer appended after a decision with a fence as high as its own."""
    counted: list[LedgerLine] = []
    highest = 0
    for line in lines:
        if line.fence and line.fence <= highest:
            continue
        highest = max(highest, line.fence)
        counted.append(line)
    return counted


def champion_before(workspace: Workspace, night: str) -> Champion | None:
    """The champion after all decisions of nights strictly before `night`: what training goes on from."""
    return _last_champion(line for line in read_ledger(workspace) if line.night < night)


def champion_now(workspace: Workspace) -> Champion | None:
    return _last_champion(read_ledger(workspace))


def champion_to_beat(workspace: Workspace, candidate: str, night: str) -> Champion | None:
    """The champion as of `night`, as if no decision on `candidate` (an address) had been taken: a gate run again asks the
    same question, and the gate of a changed night is against what its first run promoted. Nor does what a person decided after
    that night's decision change its question; `overruled` says that it decides nothing any more.
    """
    return _last_champion(
        line
        for line in read_ledger(workspace)
        if line.candidate != candidate and (line.night < night or (line.night == night and line.by == "gate"))
    )


def overruled(workspace: Workspace, night: str) -> str:
    """Why the gate of `night` no longer moves the champion; empty if it does. A later night has decided, or a person since."""
    lines = read_ledger(workspace)
    later = max((line.night for line in lines if line.night > night), default="")
    if later:
        return f"night {later} has decided since"
    by_hand = [line for line in lines if line.by == "hand" and line.decision in CROWNING and line.night == night]
    if by_hand:
        return f"{by_hand[-1].who} has decided since, at {by_hand[-1].when}: {by_hand[-1].decision}, {by_hand[-1].why}"
    return ""


def withdrawn(workspace: Workspace, candidate: str) -> str:
    """Why a person does not want this model as champion; empty if none said so, or it was promoted again since."""
    about = [
        line
        for line in read_ledger(workspace)
        if line.candidate == candidate and line.decision in ("promoted", "rolled back", "rejected")
    ]
    if not about or about[-1].decision == "promoted":
        return ""
    return f"{about[-1].decision} by {about[-1].who} at {about[-1].when}: {about[-1].why}"


def awaiting(workspace: Workspace) -> LedgerLine | None:
    """The candidate that waits for a person, its time over or not."""
    newest = next((line for line in reversed(read_ledger(workspace)) if line.decision != "kept"), None)
    return newest if newest is not None and newest.decision == "awaiting" else None


def crowned(workspace: Workspace) -> ChampionPointer | None:
    """What `champion.json` has to say."""
    line = next((line for line in reversed(read_ledger(workspace)) if line.decision in CROWNING), None)
    if line is None:
        return None
    return ChampionPointer(
        address=line.champion,
        digest=line.champion_digest,
        version=line.champion_version,
        fence=line.fence,
        night=line.night,
    )


def line_of_reign(workspace: Workspace) -> list[LedgerLine]:
    """The decisions that made the present champion and, before it, those that a rollback goes back to: oldest first, each a
    promotion. A rollback takes away what was promoted after the model that it restored.
    """
    reign: list[LedgerLine] = []
    for line in read_ledger(workspace):
        if line.decision == "promoted":
            reign.append(line)
        elif line.decision == "rolled back":
            kept = [i for i, earlier in enumerate(reign) if earlier.champion == line.champion]
            del reign[kept[-1] + 1 if kept else 0 :]
    return reign


def write_decision(workspace: Workspace, line: LedgerLine) -> bool:
    """Append, unless the gate's same decision on the same evidence is there already (a run repeated after a kill)."""
    for known in read_ledger(workspace) if line.by == "gate" else ():
        if known.by == "gate" and _question(known) == _question(line):
            return False
    append_line(workspace.ledger, line.model_dump(mode="json"))
    return True


def _question(line: LedgerLine) -> tuple[str, str, str]:
    return line.night, line.evidence_digest, line.decision


def _last_champion(lines: Iterable[LedgerLine]) -> Champion | None:
    last = None
    for line in lines:
        if line.decision in CROWNING:
            last = line
    if last is None:
        return None
    return Champion(address=last.champion, digest=last.champion_digest, version=last.champion_version, night=last.night)
