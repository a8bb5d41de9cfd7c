"""Verdict -> registered version, smoke test, alias, ledger. Deployment `release-model`, pool `cpu`."""

from __future__ import annotations

from prefect import flow

from flows.night import FlowReport, open_night
from flows.specs import NightlySpec
from spark_jobs.manifests import Corpus
from tasks.release import release_candidate
from training.manifests import Verdict


@flow(name="release-model")
def release_model(spec: NightlySpec, night: str = "") -> FlowReport:
    """Register tonight's candidate; move the champion alias to it if the verdict says so.

    Args:
        spec: What to do; this flow reads `release` and `gate.candidate`.
        night: Logical night as YYYY-MM-DD, whose verdict is there already. Empty: tonight (UTC).
    """
    with open_night(spec, night) as tonight:
        _, candidate = tonight.candidate()
        verdict = tonight.find("gate", Verdict, "evaluate-model")
        corpus = tonight.find("corpus", Corpus, "prepare-corpus")
        release_candidate(candidate, verdict, corpus, spec.release)
        return tonight.report()
