"""Every quality rule in one table: what it measures, which setting is its threshold, and on which side a document breaks it.

Definitions and sources of the measures: text_rules.py (Gopher quality), repetition_rules.py (Gopher repetition),
line_rules.py (C4, FineWeb), quality_model.py (the classifier). The first rule broken, in the order of the table, names the reject.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs import line_rules, repetition_rules, text_rules
from spark_jobs.quality_model import QualityModel
from spark_jobs.specs import CleanSpec

Floats = NDArray[np.float64]
Measured = dict[str, Floats]
Bound = Literal["at least", "at most"]  # what a document must be to stay


class Rule(NamedTuple):
    """setting: path inside CleanSpec. only: the rule is asked of these texts alone."""

    reason: str
    measure: str
    setting: str
    bound: Bound
    only: Literal["", "spaced", "english"] = ""


RULES = (
    Rule("too_few_words", "num_words", "min_words", "at least"),
    Rule("too_many_words", "num_words", "max_words", "at most"),
    Rule("words_too_short", "mean_word_length", "min_mean_word_length", "at least", "spaced"),
    Rule("words_too_long", "mean_word_length", "max_mean_word_length", "at most", "spaced"),
    Rule("symbols", "symbol_word_ratio", "max_symbol_word_ratio", "at most"),
    Rule("bullet_lines", "bullet_line_ratio", "max_bullet_line_ratio", "at most"),
    Rule("ellipsis_lines", "ellipsis_line_ratio", "max_ellipsis_line_ratio", "at most"),
    Rule("few_alphabetic_words", "alpha_word_ratio", "min_alpha_word_ratio", "at least"),
    Rule("few_stop_words", "num_stop_words", "min_stop_words", "at least", "english"),
    *(Rule(name.removesuffix("_ratio"), name, f"repetition.max_{name}", "at most") for name in repetition_rules.NAMES),
    Rule("few_sentences", "num_sentences", "c4.min_sentences", "at least"),
    Rule("placeholder", "is_placeholder", "c4.max_placeholders", "at most"),
    Rule("few_terminal_lines", "terminal_line_ratio", "fineweb.min_terminal_line_ratio", "at least"),
    Rule("fineweb_dup_line_chars", "dup_line_char_ratio", "fineweb.max_dup_line_char_ratio", "at most"),
    Rule("short_lines", "short_line_ratio", "fineweb.max_short_line_ratio", "at most"),
    Rule("list_like", "line_word_ratio", "fineweb.max_line_word_ratio", "at most"),
    Rule("low_quality", "quality_score", "classifier.min_score", "at least"),
)


def strip_lines(texts: pa.Array, spec: CleanSpec) -> pa.Array:
    """What C4's line rules leave of each text, if they are on."""
    if spec.c4 is None:
        return texts
    return line_rules.keep_all_lines(texts, spec.c4.min_words_a_line)


def measure(texts: pa.Array, spec: CleanSpec, model: QualityModel | None = None) -> Measured:
    """Everything the active rules of `spec` ask for. model: needed if `spec` has a classifier."""
    measured: Measured = dict(text_rules.measure(texts)._asdict())
    if spec.repetition is not None or spec.fineweb is not None:
        measured |= repetition_rules.measure(texts, max_ngram=10 if spec.repetition is not None else 1)
    if spec.c4 is not None or spec.fineweb is not None:
        measured |= line_rules.measure(texts)._asdict()
    if spec.c4 is not None:
        measured["is_placeholder"] = np.array([line_rules.is_placeholder(text) for text in texts.to_pylist()], float)
    if model is not None:
        measured["quality_score"] = model.score(texts)
    return measured


def active(spec: CleanSpec) -> Iterator[tuple[Rule, float]]:
    """The rules that `spec` turns on, with their thresholds."""
    for rule in RULES:
        value: Any = spec
        for name in rule.setting.split("."):
            value = None if value is None else getattr(value, name)
        if value is not None:
            yield rule, float(value)


def is_broken(rule: Rule, values: Floats, threshold: float) -> NDArray[np.bool_]:
    broken: NDArray[np.bool_] = values < threshold if rule.bound == "at least" else values > threshold
    return broken


def asked(rule: Rule, measured: Measured, languages: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Of which texts the rule is asked."""
    if rule.only == "spaced":
        is_spaced: NDArray[np.bool_] = measured["unspaced_word_ratio"] <= 0.5
        return is_spaced
    if rule.only == "english":
        is_english: NDArray[np.bool_] = (languages == "en") | (languages == "")
        return is_english
    return np.ones(len(languages), bool)


def first_broken(
    measured: Measured, spec: CleanSpec, languages: NDArray[np.object_], scores: Floats
) -> tuple[NDArray[np.object_], Floats, Floats]:
    """For each text (reason, value, threshold) of the first rule it breaks; (None, nan, nan) if it breaks none.

    languages: str[n], empty where not identified; scores: float64[n] in [0, 1]
    """
    rows = len(languages)
    reason = np.full(rows, None, object)
    value, threshold = np.full(rows, np.nan), np.full(rows, np.nan)
    decided = np.zeros(rows, bool)

    def decide(name: str, hit: NDArray[np.bool_], values: Floats, limit: float) -> None:
        new = hit & ~decided
        reason[new], value[new], threshold[new] = name, values[new], limit
        decided[new] = True

    num_words = measured["num_words"]
    decide("empty", num_words < 1, num_words, 1.0)
    is_allowed = np.isin(languages, spec.languages) if spec.languages else np.ones(rows, bool)
    decide("language", ~is_allowed | (scores < spec.min_language_score), scores, spec.min_language_score)
    for rule, limit in active(spec):
        values = measured[rule.measure]
        decide(rule.reason, asked(rule, measured, languages) & is_broken(rule, values, limit), values, limit)
    return reason, value, threshold
