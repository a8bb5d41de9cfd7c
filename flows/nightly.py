"""The whole story: raw text in, a champion (new or kept) out. Deployment `nightly`, pool `cpu`, every night."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.announce import announce
from flows.compress_model import compress_model
from flows.evaluate_model import evaluate_model
from flows.night import alone, open_night
from flows.placement import place
from flows.prepare_corpus import prepare_corpus
from flows.release_model import release_model
from flows.report import NightReport, publish_page, summarize
from flows.specs import NightlySpec
from flows.train_model import train_model
from tasks.flow_runs import SKIPPED, why_skipped

AFTER_CORPUS = (train_model, compress_model, evaluate_model, release_model)


@flow(name="nightly", flow_run_name="{spec.name} {night}")
def nightly(spec: NightlySpec, night: str = "") -> NightReport | State[Any]:
    """Read, clean, deduplicate, check, tokenize, train, compress, evaluate, gate, release.

    A step that is finished is never run again; a killed night, started again, goes on where it stopped. A night that gives way to
    a newer one (see `schedule`) ends at once, as Completed(name="Skipped") with the reason.

    Args:
        spec: What to do; one section a step. The defaults are the demo.
        night: Logical night as YYYY-MM-DD. Empty: tonight (UTC), or the scheduled start.
    """
    skipped = why_skipped(spec.schedule, night)
    if skipped:
        return Completed(name=SKIPPED, message=skipped)
    with open_night(spec, night, whole=True) as tonight, alone(tonight):
        announce(tonight)
        try:
            reports = [place(prepare_corpus, tonight)]
            if not reports[0].stopped:
                reports += [place(part, tonight) for part in AFTER_CORPUS]
        finally:
            publish_page(tonight)
        return summarize(tonight, reports)
