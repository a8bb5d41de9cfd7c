"""Ask a person whether the waiting candidate becomes champion. Deployment `approve-model`, pool `cpu`; started by the nightly.

The form stands in the flow run's page of the Prefect UI, behind "Resume". `nightmill promote` and `nightmill promote --reject` answer
the same question at a terminal.

Prefect's server calls a run whose pause has timed out Failed, whatever the flow does then, and an alarm would tell it. No answer is
no failure, so the pause may last longer than the time for an answer, and the flow itself ends its waiting.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Literal

import anyio
from prefect import flow, get_run_logger
from prefect.flow_runs import apause_flow_run
from prefect.input import RunInput
from pydantic import Field

from flows.night import FlowReport
from tasks.application import Application
from tasks.approval import expire_overdue, is_overdue, reject, the_awaiting
from tasks.artifacts import publish_markdown
from tasks.ledger import LedgerLine, awaiting, read_ledger
from tasks.promotion import find_target, promote
from tasks.specs import ReleaseSpec
from tasks.workspace import Workspace
from training.manifests import Evidence
from training.release_card import release_card

LOOK_S = 5  # seconds between two looks for an answer
OVERHANG_S = 3600  # by which Prefect's time-out of the pause is later than ours; the server must not come first, however busy it is


class Answer(RunInput):
    """The form."""

    decision: Literal["approve", "reject"]
    reason: str = Field(min_length=1, description="Kept in the ledger.")
    name: str = Field(min_length=1, description="Of who decides; kept in the ledger.")


@flow(name="approve-model", persist_result=False)
def approve_model(pipeline: str) -> FlowReport:
    """Wait for a person to approve or reject the candidate that passed the gate; without an answer in time the champion stays.

    Args:
        pipeline: Whose candidate it is: the `name` of its spec.
    """
    workspace = Workspace.of(pipeline)
    waiting = awaiting(workspace) or the_awaiting(workspace)
    _show(workspace, waiting)
    answer = None if is_overdue(waiting) else _answer(waiting)
    if answer is None or is_overdue(waiting):
        expire_overdue(workspace)
    elif awaiting(workspace) == waiting:
        _follow(workspace, waiting, answer)
    outcome = _outcome(workspace, waiting)
    get_run_logger().info("candidate of night %s: %s", waiting.night, outcome)
    return FlowReport(night=waiting.night, stopped=outcome)


def _answer(waiting: LedgerLine) -> Answer | None:
    """None if nobody answered before the time was over."""
    told = f"Version {waiting.candidate_version} of night {waiting.night} passed the gate: {waiting.why}. It waits until {waiting.until}."
    form = Answer.with_initial_data(description=told + " The model card is artifact `candidate`.")
    left_s = max(0.0, (datetime.fromisoformat(waiting.until) - datetime.now(UTC)).total_seconds())
    return asyncio.run(_paused(form, left_s))


async def _paused(form: type[Answer], left_s: float) -> Answer | None:
    with anyio.move_on_after(left_s):
        return await apause_flow_run(wait_for_input=form, timeout=int(left_s) + OVERHANG_S, poll_interval=LOOK_S)
    return None


def _follow(workspace: Workspace, waiting: LedgerLine, answer: Answer) -> None:
    if answer.decision == "reject":
        reject(workspace, answer.reason, answer.name)
        return
    target = find_target(workspace)
    spec = ReleaseSpec.model_validate(target.release.spec)
    with Application("torch", workspace.root / "logs" / waiting.night) as torch:
        promote(workspace, target, answer.reason, False, spec, torch, answer.name)


def _show(workspace: Workspace, waiting: LedgerLine) -> None:
    """What there is to know before answering: the model card, and until when."""
    target = find_target(workspace)
    evidence = Evidence.load(workspace.at(waiting.bundle))
    card = release_card(workspace.name, target.model, target.verdict, target.corpus, evidence)
    publish_markdown("candidate", card, f"version {waiting.candidate_version} waits for approval until {waiting.until}")


def _outcome(workspace: Workspace, waiting: LedgerLine) -> str:
    """The newest decision about the candidate, by whomever it was made."""
    line = [line for line in read_ledger(workspace) if line.candidate == waiting.candidate][-1]
    return f"{line.decision} by {line.who}: {line.why}"
