"""A candidate that passed the gate and waits for a person: asked for, refused, or left until its time is over.

Nothing runs while it waits. Whoever looks next (a release, `nightmill promote`, the flow `approve-model`) finds that its time is over
and writes that down; the champion stays.
"""

from __future__ import annotations

from datetime import UTC, datetime

from spark_jobs.errors import RequestError
from tasks.actor import current_actor
from tasks.champion import decide, deciding
from tasks.ledger import Decision, LedgerLine, awaiting, champion_now, now
from tasks.workspace import Workspace
from training.manifests import ModelFolder


def is_overdue(line: LedgerLine) -> bool:
    return datetime.now(UTC) > datetime.fromisoformat(line.until)


def the_awaiting(workspace: Workspace) -> LedgerLine:
    """Raises: RequestError if nothing waits, or its time is over."""
    line = awaiting(workspace)
    if line is None:
        raise RequestError(
            f"{workspace.name}: no candidate awaits approval; name the one to promote by --night DATE or --version N"
        )
    if is_overdue(line):
        raise RequestError(
            f"{workspace.name}: version {line.candidate_version} of night {line.night} waited until {line.until}, which is over; "
            f"the champion stays. To promote it all the same: --version {line.candidate_version} --force"
        )
    return line


def expire_overdue(workspace: Workspace, newer: ModelFolder | None = None) -> None:
    """Write down that the waiting candidate's time is over, if it is, or that `newer` takes its place."""
    line = awaiting(workspace)
    if line is None or (newer is not None and line.candidate == newer.address):
        return
    if is_overdue(line):
        why = f"nobody approved it until {line.until}"
    elif newer is not None:
        why = f"{newer.address} of a later night takes its place"
    else:
        return
    with deciding(workspace) as fence:
        if awaiting(workspace) == line:
            decide(fence, answer_to(workspace, line, "expired", why, "gate"))


def reject(workspace: Workspace, why: str, who: str = "") -> LedgerLine:
    """A person refuses the waiting candidate. A rerun of its night does not promote it either.

    Raises: RequestError if nothing waits.
    """
    with deciding(workspace) as fence:
        return decide(fence, answer_to(workspace, the_awaiting(workspace), "rejected", why, "hand", who))


def answer_to(
    workspace: Workspace, waiting: LedgerLine, decision: Decision, why: str, by: str, who: str = ""
) -> LedgerLine:
    """The line that ends the waiting without a new champion."""
    champion = champion_now(workspace)
    return LedgerLine.model_validate(
        waiting.model_dump()
        | {
            "decision": decision,
            "why": why,
            "by": by,
            "who": who or current_actor(),
            "when": now(),
            "until": "",
            "champion": champion.address if champion else "",
            "champion_digest": champion.digest if champion else "",
            "champion_version": champion.version if champion else "",
            "previous_champion": champion.address if champion else "",
            "previous_version": champion.version if champion else "",
        }
    )
