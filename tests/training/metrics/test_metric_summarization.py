from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenize import tokenize

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap
from training.metrics.summarization import rouge_scores
from training.metrics.tokens import words

ONE = Bootstrap(replicates=1)
TEXT = st.text(st.sampled_from("aB9 .-_'\n"), max_size=15)


def values(hypotheses: list[str | None], references: list[list[str]]) -> dict[str, float]:
    return {name: score.value for name, score in rouge_scores(hypotheses, references, ONE).items()}


@pytest.mark.parametrize("text", ["我喜欢猫", "café naïve", "हिन्दी में", "Привет, мир", "ありがとう", "ประเทศไทย"])
def test_text_of_any_script_scores_one_against_itself(text: str) -> None:
    """With the tokenizer of rouge-score, which keeps a to z and 0 to 9, the first scores 0."""
    assert values([text], [[text]]) == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}


def test_composed_and_decomposed_letters_are_the_same() -> None:
    text = "le café naïve"
    assert values([unicodedata.normalize("NFD", text)], [[text]])["rouge2"] == 1.0


def test_letters_with_and_without_an_accent_differ() -> None:
    assert values(["cafe noir"], [["café noir"]])["rouge1"] == 0.5


def test_scores_of_known_texts() -> None:
    """Three of four words, two of three pairs, "the cat sat" in order; the second best reference does not count."""
    found = values(["the cat sat here"], [["the cat sat down", "a dog"]])
    assert found == pytest.approx({"rouge1": 0.75, "rouge2": 2 / 3, "rougeL": 0.75})


def test_order_counts_for_the_longest_common_sequence_only() -> None:
    found = values(["b a"], [["a b"]])
    assert (found["rouge1"], found["rougeL"]) == (1.0, 0.5)


def test_empty_and_missing_texts_count_as_zero() -> None:
    scores = rouge_scores(["a cat", "", None], [["a cat"]] * 3, ONE)
    for score in scores.values():
        assert score.value == pytest.approx(1 / 3)
        assert (score.n, score.n_invalid) == (3, 1)
        assert "empty:2" in score.signature
        assert "tok:words-nfc|stemmer:no" in score.signature


def test_references_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="1 hypotheses, 2 references"):
        rouge_scores(["a"], [["a"], ["b"]], ONE)
    with pytest.raises(DataError, match="are the text 'a'"):
        rouge_scores(["a"], ["a"], ONE)


def test_no_texts_have_no_score() -> None:
    assert all(math.isnan(value) for value in values([], []).values())


@settings(deadline=None, max_examples=50)
@given(text=TEXT)
def test_words_of_ascii_are_the_tokens_of_rouge_score(text: str) -> None:
    assert words(text) == tokenize(text, None)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), data=st.data())
def test_scores_of_ascii_are_those_of_rouge_score_in_any_order(
    rows: list[tuple[str, str]], data: st.DataObject
) -> None:
    moved = data.draw(st.permutations(rows))
    found = values([h for h, _ in moved], [[r] for _, r in moved])
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    theirs = [scorer.score(reference, text) for text, reference in rows]
    for name, value in found.items():
        assert value == pytest.approx(sum(score[name].fmeasure for score in theirs) / len(rows))
