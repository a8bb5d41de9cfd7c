"""What the report of an evaluation shows, read from scorecards, verdict, corpus, benchmarks and the choice of compression."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark_jobs.manifests import Corpus, Frozen
from spark_jobs.requests import Request
from training.benchmarks.results import SCORES, read_results
from training.evaluate.documents import texts_of
from training.evaluate.evidence import evidence_of
from training.evaluate.gate_tests import GateTest
from training.inputs import input_uri
from training.manifests import BenchmarkScorecard, CompressionChoice, Scorecard, Verdict
from training.metrics.score import Score

EXAMPLES = 6  # documents that gained most, and as many that lost most
EXCERPT = 260  # characters
MAIL, NUMBER = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), re.compile(r"\d{3,}")


class Bin(Frozen):
    """Tokens whose confidence is in (low, high]: their number, mean confidence, and share that is right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Side:
    """One model. documents: (nats, bytes) by id. benchmarks: main metric by name. Scorecards of before have documents alone."""

    address: str
    bits_per_byte: float
    num_documents: int
    documents: Mapping[str, tuple[float, int]]
    scores: Mapping[str, Score]
    slices: Mapping[str, Score]
    reliability: tuple[Bin, ...]
    benchmarks: Mapping[str, Score]


@dataclass(frozen=True)
class Changed:
    """A document that both models scored, in bits per byte."""

    doc_id: str
    ours: float
    theirs: float
    num_bytes: int
    text: str


@dataclass(frozen=True)
class EvaluationFacts:
    night: str
    decision: str
    reason: str
    candidate: Side
    champion: Side | None
    tests: tuple[GateTest, ...]
    gained: tuple[Changed, ...]
    lost: tuple[Changed, ...]
    gzip_bits_per_byte: float
    pareto: str = ""
    choice: str = ""


def facts_of(request: Request) -> EvaluationFacts:
    """Inputs: candidate, verdict, corpus; where there are some champion, `<side>_benchmarks`, choice."""
    card = Scorecard.load(input_uri(request, "candidate"))
    verdict = Verdict.load(input_uri(request, "verdict"))
    candidate = _side(request, "candidate", card)
    champion = None
    if request.inputs.get("champion"):
        champion = _side(request, "champion", Scorecard.load(request.inputs["champion"]))
    told = json.loads((Path(verdict.folder()) / "verdict.json").read_text())
    gained, lost = _changed(Corpus.load(input_uri(request, "corpus")), candidate, champion) if champion else ((), ())
    return EvaluationFacts(
        night=request.night, decision=verdict.decision, reason=verdict.reason, candidate=candidate, champion=champion,
        tests=tuple(GateTest.model_validate(row) for row in told.get("tests", ())), gained=gained, lost=lost,
        gzip_bits_per_byte=card.gzip_bits_per_byte, **_choice(request),
    )  # fmt: skip


def _choice(request: Request) -> dict[str, str]:
    if not request.inputs.get("choice"):
        return {}
    choice = CompressionChoice.load(request.inputs["choice"])
    return {"pareto": (Path(choice.folder()) / "pareto.svg").read_text(), "choice": choice.reason}


def _side(request: Request, side: str, card: Scorecard) -> Side:
    file = Path(card.folder()) / "scores.json"
    told: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    scores = [Score.model_validate(one) for one in told.get("scores", ())]
    return Side(
        address=card.model, bits_per_byte=card.bits_per_byte, num_documents=card.num_rows,
        documents=evidence_of(card).documents, scores={score.name: score for score in scores},
        slices={name: Score.model_validate(one) for name, one in told.get("slices", {}).items()},
        reliability=tuple(Bin.model_validate(one) for one in told.get("reliability", ())),
        benchmarks=_benchmarks(request.inputs.get(f"{side}_benchmarks", "")),
    )  # fmt: skip


def _benchmarks(uri: str) -> dict[str, Score]:
    if not uri:
        return {}
    results = read_results(Path(BenchmarkScorecard.load(uri).folder()) / SCORES)
    return {name: result.scores[result.main] for name, result in results.items()}


def _changed(corpus: Corpus, ours: Side, theirs: Side) -> tuple[tuple[Changed, ...], tuple[Changed, ...]]:
    """Documents that gained most bits, and those that lost most. Whole bits, not bits per byte: those are what the sum is of."""
    shared = sorted(ours.documents.keys() & theirs.documents.keys())
    change = {i: ours.documents[i][0] - theirs.documents[i][0] for i in shared}
    order = sorted(shared, key=lambda i: (change[i], i))
    gained = [i for i in order[:EXAMPLES] if change[i] < 0]
    lost = [i for i in order[::-1][:EXAMPLES] if change[i] > 0]
    texts = texts_of(corpus, {*gained, *lost})

    def told(doc_id: str) -> Changed:
        (nats, size), (before, _) = ours.documents[doc_id], theirs.documents[doc_id]
        bits = size * math.log(2)
        return Changed(doc_id, nats / bits, before / bits, size, excerpt(texts.get(doc_id, "")))

    return tuple(map(told, gained)), tuple(map(told, lost))


def excerpt(text: str) -> str:
    """The beginning of a text, on one line, without addresses and longer numbers."""
    short = NUMBER.sub("###", MAIL.sub("<email>", " ".join(text[: 4 * EXCERPT].split())))
    return short if len(short) <= EXCERPT else short[: EXCERPT - 1] + "…"
