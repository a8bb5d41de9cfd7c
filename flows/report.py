"""The last line of a night: what ran, what it cost, which model is champion, and how good it is."""

from __future__ import annotations

import sys
from typing import Any, Literal

from pydantic import Field

from flows.night import FlowReport, Night
from spark_jobs.manifests import Frozen
from tasks.artifacts import publish_night_table
from tasks.engine import StepResult
from tasks.ledger import champion_now
from training.manifests import Release, Scorecard, Verdict

AFTER_CORPUS = ("clean", "dedup", "check-documents", "tokenizer", "tokenize", "check-tokens", "corpus", "train", "export",
                "compress", "evaluate", "gate", "report-evaluation", "release")  # fmt: skip


class ModelLine(Frozen):
    """The champion after the night."""

    name: str
    version: str
    alias: str
    address: str


class NightReport(Frozen):
    """What `nightmill run --json` prints as its last line."""

    status: Literal["done", "failed"]
    night: str
    seconds: float = 0.0
    steps: tuple[StepResult, ...] = ()
    model: ModelLine | None = None
    decision: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)


def summarize(tonight: Night, reports: list[FlowReport]) -> NightReport:
    """Put the reports of the sub-flows together with the numbers of the night."""
    steps = [step for report in reports for step in report.steps]
    stopped = reports[0].stopped
    if stopped:
        steps += [StepResult(step=name, state="skipped", why=stopped) for name in AFTER_CORPUS]
    champion = champion_now(tonight.workspace) if not tonight.engine.planning else None
    decision = stopped or _decision(tonight)
    publish_night_table(steps, tonight.night, decision)
    return NightReport(
        status="done",
        night=tonight.night,
        steps=tuple(steps),
        model=champion
        and ModelLine(name=tonight.spec.name, version=champion.version, alias="champion", address=champion.address),
        decision=decision,
        metrics={} if tonight.engine.planning or stopped else night_metrics(tonight),
    )


def publish_page(tonight: Night) -> None:
    """The page of the night, also of one that failed. A page is never worth a night: what goes wrong is said, not raised."""
    if tonight.engine.planning:
        return
    from tasks.night_page import write_page

    try:
        tonight.engine.show_page(write_page(tonight.workspace, tonight.night))
    except Exception as error:  # noqa: BLE001
        print(f"page of the night: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)  # noqa: T201


def night_metrics(tonight: Night) -> dict[str, float]:
    """Bits per byte and perplexity of each scored model, and of gzip on the same text."""
    metrics: dict[str, float] = {}
    for step in tonight.workspace.record(tonight.night).outputs:
        if step.startswith("evaluate-"):
            card: Scorecard = tonight.find(step, Scorecard, "evaluate-model")
            label = step.removeprefix("evaluate-")
            metrics[f"{label}_bits_per_byte"] = card.bits_per_byte
            metrics[f"{label}_perplexity"] = card.perplexity
            metrics["gzip_bits_per_byte"] = card.gzip_bits_per_byte
    return metrics


def _decision(tonight: Night) -> str:
    if tonight.engine.planning:
        return ""
    release: Any = tonight.find("release", Release, "release-model")
    verdict: Any = tonight.find("gate", Verdict, "evaluate-model")
    ask = "; a person answers by `nightmill promote` or in the Prefect UI" if release.decision == "awaiting" else ""
    return f"{release.decision}: {verdict.reason}{ask}"
