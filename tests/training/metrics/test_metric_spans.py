from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap
from training.metrics.spans import Span, num_orphans, scores_by_type, span_scores, spans_of

ONE = Bootstrap(replicates=1)
TAG = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])


# What seqeval 1.2.2 gives with mode="strict", scheme=IOB2; the last column counts tags that it leaves out of every entity.
@pytest.mark.parametrize(("tags", "spans", "orphans"), [
    ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)], 0),
    ("I-PER I-PER", [], 2),
    ("B-PER I-LOC I-LOC I-PER", [("PER", 0, 1)], 3),
    ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)], 0),
    ("O I-LOC B-LOC I-LOC", [("LOC", 2, 4)], 1),
    ("B-PER O I-PER", [("PER", 0, 1)], 1),
    ("B-LOC I-PER B-PER I-PER", [("LOC", 0, 1), ("PER", 2, 4)], 1),
    ("B-in-law I-in-law I-in", [("in-law", 0, 2)], 1),
    ("", [], 0),
])  # fmt: skip
def test_spans_of_tags_are_those_of_strict_iob2(tags: str, spans: list[tuple[str, int, int]], orphans: int) -> None:
    assert spans_of(tags.split()) == [Span(*span) for span in spans]
    assert num_orphans(tags.split()) == orphans


def test_span_that_begins_with_an_inside_tag_is_a_miss() -> None:
    """A lenient reading gives 1.0."""
    scores = span_scores([["B-PER", "I-PER"]], [["I-PER", "I-PER"]], ONE)
    assert scores["span_f1"].value == 0.0
    assert scores["orphan_share"].value == 1.0
    assert all("scheme:IOB2|mode:strict" in score.signature for score in scores.values())


def test_scores_of_two_sentences() -> None:
    """Gold 3 spans, predicted 3, right 1: one is too short, one of another type."""
    gold = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-PER"]]
    predicted = [["B-PER", "O", "O"], ["B-LOC", "O", "B-LOC"]]
    scores = span_scores(gold, predicted, ONE)
    assert scores["span_f1"].value == pytest.approx(1 / 3)
    assert scores["span_macro_f1"].value == pytest.approx((2 / 3 + 0) / 2)
    by_type = scores_by_type(gold, predicted, ONE)
    assert {t: (s.support, s.num_predicted, s.recall.value) for t, s in by_type.items()} == {
        "LOC": (1, 2, 1.0),
        "PER": (2, 1, 0.0),
    }


def test_same_span_in_another_sentence_is_not_right() -> None:
    scores = span_scores([["B-PER"], ["O"]], [["O"], ["B-PER"]], ONE)
    assert scores["span_f1"].value == 0.0


def test_set_without_any_span_has_no_f1() -> None:
    """seqeval says 0 or, by an option, 1: neither was measured."""
    scores = span_scores([["O", "O"]], [["O", "I-PER"]], ONE)
    assert math.isnan(scores["span_f1"].value)
    assert scores["orphan_share"].value == 0.5


def test_invalid_sentence_misses_its_spans_and_is_counted() -> None:
    scores = span_scores([["B-PER"], ["B-PER"]], [None, ["B-PER"]], ONE)
    assert scores["span_recall"].value == 0.5
    assert scores["span_precision"].value == 1.0
    assert [scores[name].n_invalid for name in scores] == [1] * len(scores)


@pytest.mark.parametrize("tag", ["PER", "B-", "S-PER", "B", "", "-PER", "b-PER"])
def test_tag_of_another_scheme_is_refused(tag: str) -> None:
    with pytest.raises(DataError, match="not of the BIO scheme"):
        spans_of(["O", tag])


def test_sentence_with_another_number_of_tags_is_refused() -> None:
    with pytest.raises(DataError, match="sentence 1 has 2 gold tags and 1 predicted"):
        span_scores([["O"], ["O", "O"]], [["O"], ["O"]], ONE)


@settings(deadline=None, max_examples=50)
@given(tags=st.lists(TAG, max_size=12))
def test_spans_are_apart_in_order_and_hold_every_tag_that_is_no_orphan(tags: list[str]) -> None:
    spans = spans_of(tags)
    covered = [i for span in spans for i in range(span.start, span.end)]
    assert covered == sorted(set(covered))
    assert len(covered) == sum(tag != "O" for tag in tags) - num_orphans(tags)
    for span in spans:
        assert [tags[i] for i in range(span.start, span.end)] == [f"B-{span.label}"] + [f"I-{span.label}"] * (
            span.end - span.start - 1
        )


@settings(deadline=None, max_examples=50)
@given(sentences=st.lists(st.lists(TAG, min_size=1, max_size=6), min_size=1, max_size=6), data=st.data())
def test_perfect_tags_have_f1_one_in_any_order(sentences: list[list[str]], data: st.DataObject) -> None:
    moved = data.draw(st.permutations(sentences))
    value = span_scores(moved, moved, ONE)["span_f1"].value
    assert math.isnan(value) if not any(map(spans_of, sentences)) else value == 1.0


@settings(deadline=None, max_examples=50)
@given(pairs=st.lists(st.lists(st.tuples(TAG, TAG), min_size=1, max_size=6), min_size=1, max_size=6), data=st.data())
def test_scores_of_sentences_do_not_depend_on_their_order(
    pairs: list[list[tuple[str, str]]], data: st.DataObject
) -> None:
    moved = data.draw(st.permutations(pairs))
    before, after = (
        span_scores([[g for g, _ in s] for s in rows], [[p for _, p in s] for s in rows], ONE)
        for rows in (pairs, moved)
    )
    for name, score in before.items():
        assert score.value == pytest.approx(after[name].value, nan_ok=True)
        assert math.isnan(score.value) or 0 <= score.value <= 1
