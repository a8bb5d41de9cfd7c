from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tasks.night_charts import columns, loss_curve, sankey
from tasks.night_facts import Check, Cost, Example, NightFacts, Score, Stage, masked
from tasks.night_page import duration, number, page_of
from tasks.usage import Usage

STAGES = (
    Stage(step="ingest", num_in=1000, num_out=990, rejects={"bad_json": 10}),
    Stage(step="clean", num_in=990, num_out=600, rejects={"too_few_words": 300, "symbols": 90}),
    Stage(step="dedup", num_in=600, num_out=500, rejects={"near_duplicate": 100}),
)


def facts(**changes: object) -> NightFacts:
    whole = NightFacts(
        pipeline="demo", night="2026-11-25", stages=STAGES, sources={"a<b": (500, 100)}, lengths=(0, 0, 3, 5), num_sampled=8,
        languages={"en": 6, "de": 2}, clusters={1: 20, 12: 2}, largest=(("ab" * 16, 12),),
        examples=(
            Example(step="clean", reason="symbols", value=0.4, threshold=0.1, origin="x@0", detail="", text="<script>1</script>"),
        ),
        costs=(Cost(step="clean", usage=Usage(seconds=2, cpu_seconds=4, peak_mb=100), megabytes=8.0),),
        checks=(Check(step="check-documents", success=True, num_expectations=3, failed=(), page="../c/index.html"),),
        num_sequences=10, num_tokens=1000, num_heldout=50, corpus_tokens=2000, num_nights=2, curve=((1, 6.0), (2, 5.0), (3, 4.5)),
        num_parameters=99, scores=(Score(model="dense", bits_per_byte=2.5, weight_bytes=10**6),), gzip_bits_per_byte=3.0,
        decision="promoted", reason="it is better",
    )  # fmt: skip
    return whole.model_copy(update=changes)


class Loads(HTMLParser):
    """What a page would fetch or run, and the tags it leaves open."""

    VOID = {"meta", "line", "path", "rect", "polyline", "br", "tr", "td", "th"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if tag in ("script", "link", "img", "iframe", "object") or "src" in names:
            self.found.append(tag)
        if (names.get("href") or "").startswith("http"):
            self.found.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("page", [page_of(facts()), page_of(NightFacts(pipeline="p", night="2026-01-01"))])
def test_page_loads_nothing_and_is_well_formed(page: str) -> None:
    loads = Loads()
    loads.feed(page)
    assert loads.found == []
    assert loads.open == []
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page


def test_page_shows_counts_reasons_rates_and_the_decision() -> None:
    page = page_of(facts())
    for words in ("too few words  300", "near duplicate  100", "training  450", "held out  50", "a&lt;b", "Promoted", "2.000",
                  "0.4, threshold 0.1", "&lt;script&gt;1&lt;/script&gt;", "en<td"):  # fmt: skip
        assert words in page, words
    assert "cost, by the prices" not in page


def test_page_shows_the_picture_of_candidates_and_why_the_best_was_chosen() -> None:
    drawn = '<svg xmlns="http://www.w3.org/2000/svg"><circle r="1"/></svg>'
    page = page_of(facts(pareto=drawn, choice="int4: 17 % of the dense bytes, loses < 0.02"))
    assert drawn in page
    assert "loses &lt; 0.02" in page
    assert "Candidates by size" not in page_of(facts())


def test_page_counts_cost_only_where_a_price_is_set() -> None:
    page = page_of(facts(price_cpu_hour=3600.0))
    assert "4.0000 at 3600 a core-hour" in page
    assert "GPU-hour" not in page


def test_failed_check_is_said_first() -> None:
    check = Check(step="check-documents", success=False, num_expectations=3, failed=("no_rows",), page="x")
    page = page_of(facts(checks=(check,), decision="", reason=""))
    assert "<b>Stopped</b> by check-documents" in page
    assert "no_rows" in page


def test_heights_of_the_flow_are_in_proportion_to_counts() -> None:
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', sankey(STAGES, {}))]
    assert heights == pytest.approx([210.0, 210 * 0.99, 210 * 0.6], abs=0.06)


def test_many_reasons_are_put_together() -> None:
    stage = Stage(step="clean", num_in=100, num_out=55, rejects={f"rule_{i}": i for i in range(9, 0, -1)} | {"last": 0})
    assert "other reasons" not in sankey([stage], {})
    stage = stage.model_copy(update={"rejects": {f"rule_{i}": 3 for i in range(15)}})
    assert "7 other reasons  21" in sankey([stage], {})


def test_charts_take_the_smallest_input() -> None:
    assert "<rect" in columns([("1", 1)])
    assert columns([]).startswith("<svg")
    assert "<polyline" in loss_curve([(1, 2.0), (2, 2.0)])
    assert sankey([Stage(step="ingest", num_in=0, num_out=0, rejects={})], {}).startswith("<svg")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("write to a.b@c-d.org now", "write to <email> now"), ("call 555-12345", "call ###-###"), ("a\n b", "a b"),
     ("kept " + "12345678" * 4, "kept " + "12345678" * 4), ("x" * 500, "x" * 219 + "…")],
)  # fmt: skip
def test_examples_are_masked_and_short(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_numbers_and_times_read_well() -> None:
    assert [number(n) for n in (999, 12345, 2_500_000, 3e9)] == ["999", "12,345", "2.50 M", "3.00 B"]
    assert [duration(s) for s in (1.25, 600, 7200)] == ["1.2 s", "10.0 min", "2.0 h"]
