"""Verdict -> registered version, evidence, the test that it speaks, decision. Safe to run again after a kill at any point.

Registration and the test are done before the lock of the champion is taken; under it, the decision is made and written down.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from spark_jobs.errors import ChampionMoved, RequestError
from spark_jobs.manifests import Corpus
from spark_jobs.requests import Outcome
from tasks import registry
from tasks.actor import current_actor
from tasks.approval import expire_overdue
from tasks.champion import decide, deciding
from tasks.engine import Engine, current_engine, is_planned
from tasks.evidence import bundle
from tasks.ledger import (
    Champion,
    Decision,
    LedgerLine,
    awaiting,
    champion_now,
    champion_to_beat,
    overruled,
    withdrawn,
)
from tasks.model_check import check_model
from tasks.specs import ReleaseSpec
from tasks.steps import Step
from tasks.workspace import Workspace
from training.manifests import Evidence, ModelFolder, Release, Verdict


def release_candidate(candidate: ModelFolder, verdict: Verdict, corpus: Corpus, spec: ReleaseSpec) -> Release:
    """Register the candidate; if the verdict says so and the model loads and speaks, make it champion, or let it wait for a person.

    Raises: ChampionMoved, and nothing was done, if the gate compared with another champion than there is now.
    """
    engine = current_engine()
    if not is_planned(verdict) and not is_planned(candidate):
        refuse_overtaken(engine.workspace, candidate, verdict, engine.night)
    return engine.run(
        Step(
            name="release", handle=Release, entry="training.manifests", spec=spec, night=engine.night, dated=True,
            inputs={"candidate": candidate, "verdict": verdict, "corpus": corpus},
            work=partial(_release, engine, candidate, verdict, corpus, spec),
        )
    )  # fmt: skip


def refuse_overtaken(workspace: Workspace, candidate: ModelFolder, verdict: Verdict, night: str) -> None:
    """A verdict counts only against the champion it compared with; two gates at once must not both promote."""
    champion = champion_to_beat(workspace, candidate.address, night)
    now = champion.address if champion else ""
    if verdict.champion != now:
        raise ChampionMoved(
            f"release: the champion is {now or 'none'}, the gate compared {candidate.address} with {verdict.champion or 'none'}; "
            "evaluate-model has to compare it with the new champion"
        )


def _release(
    engine: Engine, candidate: ModelFolder, verdict: Verdict, corpus: Corpus, spec: ReleaseSpec, attempt: Path
) -> Outcome:
    workspace = engine.workspace
    if verdict.candidate != candidate.address:
        raise RequestError(
            f"release: the verdict of night {engine.night} is on {verdict.candidate}, the candidate is {candidate.address}; run evaluate-model again"
        )
    evidence = bundle(workspace, candidate, verdict, corpus)
    version = registry.register(workspace, candidate, verdict, corpus, evidence)
    if verdict.decision == "promote":
        check_model(engine.applications["torch"], candidate, candidate.digest, engine.night, spec)
    likely, _ = _decision(workspace, candidate, verdict, engine.night, spec)
    expire_overdue(workspace, None if likely == "kept" else candidate)
    with deciding(workspace) as fence:
        refuse_overtaken(workspace, candidate, verdict, engine.night)
        decision, why = _decision(workspace, candidate, verdict, engine.night, spec)
        decide(fence, _line(workspace, engine.night, candidate, version, verdict, evidence, decision, why, spec))
    champion, waiting = champion_now(workspace), awaiting(workspace)
    if decision == "awaiting" and (waiting is None or waiting.candidate != candidate.address):
        decision = "kept"  # decided before, by a run of this night that was killed afterwards
    fields = {
        "decision": decision,
        "model_name": workspace.name,
        "model_version": version,
        "champion": champion.address if champion else "",
    }
    (attempt / "data").mkdir()
    (attempt / "data" / "release.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    return Outcome(num_rows=1, format="json", fields=fields)


def _decision(
    workspace: Workspace, candidate: ModelFolder, verdict: Verdict, night: str, spec: ReleaseSpec
) -> tuple[Decision, str]:
    """What the verdict comes to, and why, given what has been decided since."""
    against = overruled(workspace, night) or withdrawn(workspace, candidate.address)
    if against:
        return "kept", f"{verdict.reason}; {against}"
    if verdict.decision != "promote":
        return "kept", verdict.reason
    return ("promoted" if spec.approval == "none" else "awaiting"), verdict.reason


def _line(
    workspace: Workspace, night: str, candidate: ModelFolder, version: str, verdict: Verdict, evidence: Evidence,
    decision: Decision, why: str, spec: ReleaseSpec,
) -> LedgerLine:  # fmt: skip
    before = champion_to_beat(workspace, candidate.address, night)
    champion = champion_now(workspace)
    if decision == "promoted":
        champion = Champion(address=candidate.address, digest=candidate.digest, version=version, night=night)
    until = datetime.now(UTC) + timedelta(hours=spec.approval_hours)
    return LedgerLine(
        night=night,
        decision=decision,
        why=why,
        who=current_actor(),
        candidate=candidate.address,
        candidate_digest=candidate.digest,
        candidate_version=version,
        champion=champion.address if champion else "",
        champion_digest=champion.digest if champion else "",
        champion_version=champion.version if champion else "",
        previous_champion=before.address if before else "",
        previous_version=before.version if before else "",
        evidence=verdict.address,
        evidence_digest=verdict.digest,
        bundle=evidence.address,
        bundle_digest=evidence.digest,
        until=until.isoformat(timespec="seconds") if decision == "awaiting" else "",
    )
