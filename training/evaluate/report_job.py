"""The report of an evaluation as a job: `data/report.html`."""

from __future__ import annotations

from pathlib import Path

from spark_jobs.requests import Outcome, Request
from training.evaluate.report_facts import facts_of
from training.evaluate.report_page import page_of


def run(request: Request) -> Outcome:
    """Inputs: see `facts_of`."""
    facts = facts_of(request)
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "report.html").write_text(page_of(facts))
    return Outcome(num_rows=len(facts.tests), format="html", fields={"decision": facts.decision})
