"""Verdict -> registered version, smoke test, alias, ledger. Safe to run again after a kill at any point."""

from __future__ import annotations

import getpass
import json
import os
import socket
from functools import partial
from pathlib import Path

from spark_jobs.errors import NightmillError, StepBusy
from spark_jobs.manifests import Corpus
from spark_jobs.requests import Outcome, Request
from tasks import registry
from tasks.engine import Engine, current_engine
from tasks.ledger import Champion, LedgerLine, champion_now, champion_to_beat, decided_after, write_decision
from tasks.locks import held
from tasks.specs import ReleaseSpec
from tasks.steps import Step
from training.manifests import ModelFolder, Release, Verdict

SMOKE_S = 600.0


def release_candidate(candidate: ModelFolder, verdict: Verdict, corpus: Corpus, spec: ReleaseSpec) -> Release:
    """Register the candidate; if the verdict says so and the model loads and speaks, make it champion."""
    engine = current_engine()
    return engine.run(
        Step(
            name="release", handle=Release, entry="training.manifests", spec=spec, night=engine.night, dated=True,
            inputs={"candidate": candidate, "verdict": verdict, "corpus": corpus},
            work=partial(_release, engine, candidate, verdict, corpus, spec),
        )
    )  # fmt: skip


def _release(
    engine: Engine, candidate: ModelFolder, verdict: Verdict, corpus: Corpus, spec: ReleaseSpec, attempt: Path
) -> Outcome:
    workspace = engine.workspace
    with held(workspace.lock("champion"), wait_s=SMOKE_S):
        before = champion_to_beat(workspace, candidate.address, engine.night)
        _refuse_stale(verdict, before)
        version = registry.register(workspace, candidate, verdict, corpus)
        later = decided_after(workspace, engine.night)
        promoted = verdict.decision == "promote" and not later
        if promoted:
            _smoke_test(engine, candidate, spec)
            registry.set_champion(workspace.name, version)
        champion = (
            Champion(address=candidate.address, digest=candidate.digest, version=version, night=engine.night)
            if promoted
            else champion_now(workspace)
        )
        why = f"{verdict.reason}; night {later} has decided since" if later else verdict.reason
        write_decision(workspace, _line(engine.night, candidate, verdict, why, champion, before, promoted))
    fields = {
        "decision": "promoted" if promoted else "kept",
        "model_name": workspace.name,
        "model_version": version,
        "champion": champion.address if champion else "",
    }
    (attempt / "data").mkdir()
    (attempt / "data" / "release.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    return Outcome(num_rows=1, format="json", fields=fields)


def _refuse_stale(verdict: Verdict, champion: Champion | None) -> None:
    """A verdict counts only against the champion it compared with; two gates at once must not both promote."""
    now = champion.address if champion else ""
    if verdict.champion != now:
        raise StepBusy(
            f"release: the champion is {now or 'none'}, the gate compared with {verdict.champion or 'none'}; another run "
            "decided in between, run again to be compared with the new champion"
        )


def _smoke_test(engine: Engine, candidate: ModelFolder, spec: ReleaseSpec) -> None:
    """Load the folder in plain transformers, in a process of its own, and let it continue a text."""
    request = Request(
        job="generate",
        spec={"prompt": spec.smoke_prompt, "max_new_tokens": spec.smoke_tokens},
        inputs={"model": candidate.uri},
        out="",
        night=engine.night,
    )
    answer = engine.applications["torch"].ask(request, SMOKE_S)
    if not answer.fields.get("text"):
        raise NightmillError(f"release: {candidate.address} loads but generates nothing; the champion stays")


def _line(
    night: str,
    candidate: ModelFolder,
    verdict: Verdict,
    why: str,
    champion: Champion | None,
    before: Champion | None,
    promoted: bool,
) -> LedgerLine:
    return LedgerLine(
        night=night,
        decision="promoted" if promoted else "kept",
        why=why,
        who=os.environ.get("NIGHTMILL_ACTOR") or f"{getpass.getuser()}@{socket.gethostname()}",
        candidate=candidate.address,
        candidate_digest=candidate.digest,
        champion=champion.address if champion else "",
        champion_digest=champion.digest if champion else "",
        champion_version=champion.version if champion else "",
        previous_champion=before.address if before else "",
        previous_version=before.version if before else "",
        evidence=verdict.address,
        evidence_digest=verdict.digest,
    )
