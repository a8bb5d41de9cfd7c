"""The report of an evaluation: what it shows, that it loads nothing, and that it is made of real outputs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_jobs.requests import Request
from training.benchmarks.results import SCORES, BenchmarkResult, write_results
from training.evaluate.gate_job import run as gate
from training.evaluate.gate_tests import GateTest
from training.evaluate.report_charts import forest, reliability
from training.evaluate.report_facts import Bin, Changed, EvaluationFacts, Side, excerpt
from training.evaluate.report_page import page_of, told
from training.manifests import BenchmarkScorecard, EvaluationReport, Measurement, ModelFolder, Scorecard, Verdict
from training.metrics.proportion import proportion
from training.metrics.score import Score

TESTS = (
    GateTest(name="bits per byte", kind="primary", unit="bits per byte", difference=-0.02, bound=0.004, margin=0.01, p=0.02, n=80, outcome="passed"),
    GateTest(name="benchmark a<b", kind="benchmark", unit="score", difference=0.03, bound=0.06, margin=0.02, p=0.4, mcnemar_p=0.03, n=200, outcome="failed"),
    GateTest(name="slice source=web", kind="slice", unit="bits per byte", difference=0.1, margin=0.05, n=4, outcome="untested"),
    GateTest(name="guard bytes on disk", kind="guard", unit="ratio", difference=0.3, bound=0.3, margin=1.0, outcome="passed"),
    GateTest(name="better: bits per byte", kind="better", unit="bits per byte", difference=-0.02, p=0.01, p_adjusted=0.02, n=80, outcome="shown"),
)  # fmt: skip


def score(name: str, value: float, n_invalid: int = 0) -> Score:
    low, high = (value - 0.1, value + 0.1) if math.isfinite(value) else (math.nan, math.nan)
    return Score(name=name, value=value, n=80, n_invalid=n_invalid, low=low, high=high, signature="x:y")


def side(address: str, value: float) -> Side:
    return Side(
        address=address, bits_per_byte=value, num_documents=80, documents={},
        scores={"bits_per_byte": score("bits_per_byte", value), "ece": score("ece", math.nan, 3)},
        slices={"source=web": score("bits_per_byte", value)}, benchmarks={"piqa": score("acc", 0.6)},
        reliability=(Bin(low=0, high=0.1, n=90, confidence=0.05, accuracy=0.1), Bin(low=0.9, high=1, n=10, confidence=0.95, accuracy=0.8)),
    )  # fmt: skip


def facts(**changes: Any) -> EvaluationFacts:
    whole = EvaluationFacts(
        night="2026-11-25", decision="keep", reason="loses <0.1>", candidate=side("models/new", 2.5), champion=side("models/old", 2.4),
        tests=TESTS, gained=(Changed("ab", 2.0, 2.5, 100, "<script>x</script>"),), lost=(Changed("cd", 2.6, 2.5, 50, "text"),),
        gzip_bits_per_byte=3.1, pareto='<svg xmlns="http://www.w3.org/2000/svg"><circle r="1"/></svg>', choice="int8: small",
    )  # fmt: skip
    return replace(whole, **changes)


class Reader(HTMLParser):
    """What a page would load, and what it leaves open."""

    VOID = {"meta", "line", "circle", "polyline", "rect", "tr", "td", "th", "p"}  # noqa: RUF012

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object") or {"src", "href"} & {name for name, _ in attrs}:
            self.loads.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


FIRST = {"champion": None, "tests": (), "gained": (), "lost": (), "pareto": "", "decision": "promote"}


@pytest.mark.parametrize(
    "changes", [{}, FIRST, {"candidate": replace(side("m", 2.0), scores={}, slices={}, reliability=())}]
)
def test_report_loads_nothing_and_is_well_formed(changes: dict[str, Any]) -> None:
    page = Reader(page_of(facts(**changes)))
    assert (page.loads, page.open) == ([], [])


def test_report_shows_decision_scores_tests_and_what_changed() -> None:
    page = page_of(facts())
    for words in ("Keep the champion</b>: loses &lt;0.1&gt;", "2.5000 [2.4000, 2.6000]", "undefined, 3 of 80 without a finite score",
                  "benchmark a&lt;b", "benchmark piqa (acc)", "2.500 to 2.000 bits per byte (-0.500)", "&lt;script&gt;x&lt;/script&gt;",
                  "source=web", "-0.0200", "at most +0.0040; +0.01 allowed", "failed", "int8: small", "models/old"):  # fmt: skip
        assert words in page, words


def test_report_of_a_first_night_has_one_model() -> None:
    page = page_of(facts(**FIRST))
    assert "Promote</b>" in page
    assert "champion" not in page.split("<main>")[1].replace("Keep the champion", "")


def test_forest_points_to_where_differences_lie() -> None:
    drawn = forest([TESTS[0], TESTS[2]], "bits per byte")
    dots = [float(part.split('"')[0]) for part in drawn.split('<circle cx="')[1:]]
    assert dots[0] < dots[1], "to the right is worse"
    assert drawn.count("var(--r1)") == 1, "an untested slice has no margin to keep to"
    assert "nothing to compare" in forest([TESTS[0].model_copy(update={"difference": None, "bound": None})], "x")


def test_reliability_has_a_dot_a_bin_and_a_name_a_model() -> None:
    drawn = reliability([("candidate", "--r3", side("m", 1).reliability), ("champion", "--r0", ())])
    assert drawn.count("<circle") == 1 + 2, "a bin of ten tokens says nothing"
    assert "champion" in drawn


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("write to a.b@c-d.org\n now", "write to <email> now"),
        ("call 555-12345", "call ###-###"),
        ("x" * 500, "x" * 259 + "…"),
    ],
)
def test_excerpts_are_masked_and_short(text: str, shown: str) -> None:
    assert excerpt(text) == shown


def test_score_without_an_interval_is_told_without_one() -> None:
    assert told(score("a", 1.5).model_copy(update={"low": math.nan, "high": math.nan})) == "1.5000"
    assert told(None) == ""


def card(make: Any, root: Path, name: str, nats: dict[str, float]) -> Scorecard:
    """A published scorecard of documents of 200 bytes."""
    folder = root / "scorecards" / f"evaluate-{name}"
    (folder / "data").mkdir(parents=True)
    rows = [{"doc_id": i, "source": "test", "num_bytes": 200, "num_tokens": 50, "nats": n} for i, n in nats.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "documents.parquet")
    found: Scorecard = make.publish(
        Scorecard, folder, "2026-01-01", len(rows), model=f"models/{name}", perplexity=1.0, num_tokens=50, num_bytes=200,
        bits_per_byte=sum(nats.values()) / (200 * len(nats) * math.log(2)), num_invalid=0, gzip_bits_per_byte=3.0,
    )  # fmt: skip
    return found


def beside(make: Any, root: Path, name: str, right: list[bool], weight_bytes: int, speed: float) -> dict[str, str]:
    """What else the gate may know of a model, published."""
    items = root / "benchmark-scorecards" / f"benchmarks-{name}"
    (items / "data").mkdir(parents=True)
    rows = [{"benchmark": "piqa", "id": str(i), "right": r, "value": float(r)} for i, r in enumerate(right)]
    pq.write_table(pa.Table.from_pylist(rows), items / "data" / "items.parquet")
    share = proportion("acc", right)
    result = BenchmarkResult(
        kind="multiple_choice", version="1", main="acc", higher_is_better=True, scores={"acc": share}
    )
    write_results({"piqa": result}, items / "data" / SCORES)
    for part in (f"models/export-{name}", f"measurements/measure-{name}"):
        (root / part).mkdir(parents=True)
    told = {
        "benchmarks": make.publish(BenchmarkScorecard, items, "2026-01-01", len(rows), model=name),
        "model": make.publish(
            ModelFolder, root / f"models/export-{name}", "2026-01-01", 1, scheme="dense", num_parameters=1,
            weight_bytes=weight_bytes, effective_bits=32,
        ),
        "speed": make.publish(
            Measurement, root / f"measurements/measure-{name}", "2026-01-01", 1, model=name, num_threads=1,
            weight_bytes=weight_bytes, peak_bytes=1, prefill_tokens_per_s=1, decode_tokens_per_s=speed,
        ),
    }  # fmt: skip
    return {part: handle.uri for part, handle in told.items()}


def test_gate_reads_benchmarks_sizes_and_speeds_where_they_are_given(make: Any, tmp_path: Path) -> None:
    """Half the speed, half the bytes, 8 answers of 200 lost."""
    champion, candidate = ({f"{i:03d}": nats + i % 3 for i in range(30)} for nats in (100.0, 90.0))
    inputs = {
        "candidate": card(make, tmp_path, "new", candidate).uri,
        "champion": card(make, tmp_path, "old", champion).uri,
    }
    for side, name, wrong, size, speed in (("candidate", "new", 58, 500, 50.0), ("champion", "old", 50, 1000, 100.0)):
        told = beside(make, tmp_path, name, [i >= wrong for i in range(200)], size, speed)
        inputs |= {f"{side}_{part}": uri for part, uri in told.items()}
    spec = {"guards": {"max_bytes_ratio": 1.0, "max_latency_ratio": 1.5}, "benchmark_margin": 0.1}
    request = Request(job="gate", spec=spec, inputs=inputs, out=str(tmp_path / "out"), night="2026-01-01")
    assert gate(request).fields["decision"] == "keep"
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "data" / "verdict.json").read_text())["tests"]}
    told = {
        name: (rows[name]["difference"], rows[name]["outcome"])
        for name in rows
        if rows[name]["kind"] in ("guard", "benchmark")
    }
    assert told == {
        "benchmark piqa": (0.04, "passed"), "guard documents not scored": (0.0, "passed"), "guard bytes on disk": (0.5, "passed"),
        "guard seconds a token": (2.0, "failed"),
    }  # fmt: skip
    assert gate(request.model_copy(update={"spec": {"benchmark_margin": 0.1}})).fields["decision"] == "promote"


def test_report_is_made_of_what_the_gate_used(engine: Any, world: Any, make: Any, tmp_path: Path) -> None:
    """Two scorecards on the same documents; the second model gains on the one document and loses on the others."""
    heldout = pq.read_table(world.corpus.at(world.corpus.nights[0].tokens.address) + "/heldout").to_pylist()
    texts = {row["doc_id"]: row["text"] for row in heldout}
    ids = sorted(texts)
    cards = {
        "old": card(make, tmp_path, "old", dict.fromkeys(ids, 100.0)),
        "new": card(make, tmp_path, "new", {ids[0]: 10.0} | dict.fromkeys(ids[1:], 101.0)),
    }
    sides = {"candidate": cards["new"].uri, "champion": cards["old"].uri}
    verdict = engine.run(Verdict, "gate", {"min_documents": 2}, tmp_path / "verdicts" / "gate-0001", **sides)
    inputs = sides | {"verdict": verdict.uri, "corpus": world.corpus.uri}
    for side, name, num_right in (("candidate", "new", 30), ("champion", "old", 20)):
        told = beside(make, tmp_path, name, [i < num_right for i in range(40)], 1, 1.0)
        inputs[f"{side}_benchmarks"] = told["benchmarks"]
    report = engine.run(
        EvaluationReport, "report-evaluation", {}, tmp_path / "evaluation-reports" / "report-0001", **inputs
    )
    page = (Path(report.folder()) / "report.html").read_text()
    best = min(texts)
    assert f"{best}: 0.721 to 0.072 bits per byte" in page
    assert excerpt(texts[best])[:40] in page
    assert "benchmark piqa (acc)" in page
    assert "0.7500 [0.5981, 0.8581]" in page
    told_tests = json.loads((Path(verdict.folder()) / "verdict.json").read_text())["tests"]
    assert report.num_rows == len(told_tests)
    assert report.decision == verdict.decision
