"""Verdict -> registered version, test that it speaks, alias, ledger. Deployment `release-model`, pool `cpu`."""

from __future__ import annotations

from prefect import flow

from flows.ask_approval import ask_for_approval
from flows.evaluate_model import evaluate_model
from flows.night import FlowReport, Night, open_night
from flows.placement import place
from flows.specs import NightlySpec
from spark_jobs.errors import ChampionMoved, StepBusy
from spark_jobs.manifests import Corpus
from tasks.engine import is_planned
from tasks.release import release_candidate
from training.manifests import Release, Verdict

GATES = 3  # times the gate is asked at most, where other runs go on promoting in between


@flow(name="release-model")
def release_model(spec: NightlySpec, night: str = "") -> FlowReport:
    """Register tonight's candidate; move the champion alias to it if the verdict says so, or ask a person.

    Where another run has promoted since the gate decided, the gate is asked again, against the new champion.

    Args:
        spec: What to do; this flow reads `release` and `gate.candidate`, and `evaluate` and `gate` where the gate is asked again.
        night: Logical night as YYYY-MM-DD, whose verdict is there already. Empty: tonight (UTC).
    """
    with open_night(spec, night) as tonight:
        release = released(tonight)
        if not is_planned(release) and release.decision == "awaiting":
            ask_for_approval(spec.name, tonight.night, release)
        return tonight.report()


def released(tonight: Night) -> Release:
    """Raises: StepBusy if the champion moved each time that the gate was asked."""
    _, candidate = tonight.candidate()
    corpus = tonight.find("corpus", Corpus, "prepare-corpus")
    for _ in range(GATES):
        verdict = tonight.find("gate", Verdict, "evaluate-model")
        try:
            return release_candidate(candidate, verdict, corpus, tonight.spec.release)
        except ChampionMoved:
            place(evaluate_model, tonight)
    raise StepBusy(
        f"release: the champion moved {GATES} times while the gate compared with it; run release-model again"
    )
