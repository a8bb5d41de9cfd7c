"""Spans of BIO tags and their F1: strict IOB2, as `seqeval` scores with mode="strict", scheme=IOB2. Items are sentences.

A span of type t begins at B-t and goes on while I-t follows; anything else ends it. An I-t that does not follow B-t or
I-t of the same type is an *orphan*: it belongs to no span, and does not begin one. So B-PER I-PER predicted as I-PER
I-PER is a miss, where the lenient reading of conlleval calls it right. A predicted span is right if start, end and type
are those of a gold span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, resample_sums
from training.metrics.f1 import Counts, KindScores, count_findings, f1, precision, recall, scores_by_kind
from training.metrics.pairing import check_paired
from training.metrics.ratio import ratio
from training.metrics.score import Score

SCHEME = "scheme:IOB2|mode:strict"


class Span(NamedTuple):
    """Words start (included) to end (not included) of one sentence."""

    label: str
    start: int
    end: int


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Raises: DataError on a tag that is not O, B-type or I-type."""
    spans: list[Span] = []
    for i, tag in enumerate(tags):
        prefix, label = _parsed(tag)
        if prefix == "B":
            spans.append(Span(label, i, i + 1))
        elif prefix == "I" and spans and spans[-1].end == i and spans[-1].label == label:
            spans[-1] = spans[-1]._replace(end=i + 1)
    return spans


def num_orphans(tags: Sequence[str]) -> int:
    """I- tags that belong to no span: invalid transitions, and what follows of them."""
    in_spans = sum(span.end - span.start - 1 for span in spans_of(tags))
    return sum(tag.startswith("I-") for tag in tags) - in_spans


def span_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str] | None], bootstrap: Bootstrap
) -> dict[str, Score]:
    """span_f1, span_precision, span_recall (micro), span_macro_f1 over types, orphan_share of predicted tags.

    predicted: tags of each sentence, None where a logit was not finite: no span found, counted invalid.
    Raises: DataError if a sentence has not as many tags as words.
    """
    counts = count_spans(gold, predicted, bootstrap)
    return {
        "span_f1": f1(counts, "micro", "span_f1"),
        "span_precision": precision(counts, "span_precision"),
        "span_recall": recall(counts, "span_recall"),
        "span_macro_f1": f1(counts, "macro", "span_macro_f1"),
        "orphan_share": orphan_share(predicted, bootstrap),
    }


def scores_by_type(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str] | None], bootstrap: Bootstrap
) -> dict[str, KindScores]:
    """Of every type of span in gold or prediction."""
    return scores_by_kind(count_spans(gold, predicted, bootstrap))


def count_spans(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str] | None], bootstrap: Bootstrap
) -> Counts:
    check_paired(gold=gold, predicted=predicted)
    for i, (wanted, found) in enumerate(zip(gold, predicted, strict=True)):
        if found is not None and len(found) != len(wanted):
            raise DataError(f"sentence {i} has {len(wanted)} gold tags and {len(found)} predicted: one a word, please")
    return count_findings(
        [frozenset(spans_of(tags)) for tags in gold],
        [None if tags is None else frozenset(spans_of(tags)) for tags in predicted],
        lambda span: span.label,
        bootstrap,
        SCHEME,
    )


def orphan_share(predicted: Sequence[Sequence[str] | None], bootstrap: Bootstrap) -> Score:
    """Orphans of all predicted tags: what strictness costs a model that does not know the scheme."""
    stats = [(num_orphans(tags), len(tags)) if tags is not None else (0, 0) for tags in predicted]
    resampled = resample_sums(
        np.array(stats, np.float64).reshape(-1, 2), bootstrap, sum(tags is None for tags in predicted)
    )

    return resampled.score("orphan_share", lambda sums: ratio(sums[..., 0], sums[..., 1]), SCHEME)


def _parsed(tag: str) -> tuple[str, str]:
    prefix, dash, label = tag.partition("-")
    if tag == "O" or (prefix in ("B", "I") and dash and label):
        return prefix, label
    raise DataError(f"tag {tag!r} is not of the BIO scheme: wanted O, B-type or I-type")
