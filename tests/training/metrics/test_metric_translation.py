from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, drawn, paired_difference
from training.metrics.translation import bleu, bleu_of_sums, bleu_scorer, chrf, reference_streams, segment_sums

ONE = Bootstrap(replicates=1)
TEXT = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", ",", "yes", "."]), max_size=9).map(" ".join)
FULL = TEXT.filter(bool)


def test_references_are_taken_by_text() -> None:
    """The first text is its reference, the second shares nothing with its own: 50. Read as streams it would be 100."""
    assert chrf(["abc", "zzz"], [["abc"], ["def"]], ONE).value == pytest.approx(50.0)
    assert CHRF().corpus_score(["abc", "zzz"], [["abc"], ["def"]]).score == 100.0


def test_references_that_do_not_fit_are_refused() -> None:
    """sacrebleu scores two texts against one reference as if there were one text."""
    with pytest.raises(DataError, match="2 hypotheses, 1 references"):
        bleu(["the cat sat on the mat"] * 2, [["the cat sat on the mat"]], "en", ONE)
    with pytest.raises(DataError, match="references of item 0 are the text 'the cat'"):
        bleu(["the cat"], ["the cat"], "en", ONE)
    with pytest.raises(DataError, match="text 1 has no reference"):
        chrf(["a", "b"], [["a"], []], ONE)


def test_empty_text_costs_the_length_of_its_reference() -> None:
    """Six of twelve words written, all of them right: brevity penalty exp(1 - 12 / 6)."""
    score = bleu(["the cat sat on the mat", ""], [["the cat sat on the mat"], ["and then it ran far away"]], "en", ONE)
    assert score.value == pytest.approx(100 * math.exp(-1))
    assert (score.n, score.n_invalid) == (2, 0)
    assert "|empty:1|" in score.signature


def test_empty_text_alone_is_zero_also_with_several_references() -> None:
    for references in ([["a cat"]], [["a cat", "the cat", "cats"]]):
        assert bleu([""], references, "en", ONE).value == 0.0
        assert chrf([""], references, ONE).value == 0.0


def test_text_that_was_not_written_is_empty_and_invalid() -> None:
    rows = [["the cat sat on the mat"], ["and then it ran far away"]]
    missing = bleu(["the cat sat on the mat", None], rows, "en", ONE)
    assert missing.value == bleu(["the cat sat on the mat", ""], rows, "en", ONE).value
    assert missing.n_invalid == 1


def test_text_below_four_words_has_no_bleu_even_if_right() -> None:
    assert bleu(["yes"], [["yes"]], "en", ONE).value == 0.0
    assert "eff:no" in bleu(["yes"], [["yes"]], "en", ONE).signature


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(TEXT, st.lists(FULL, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_scores_and_signatures_are_those_of_sacrebleu(rows: list[tuple[str, list[str]]]) -> None:
    hypotheses, references = [text for text, _ in rows], [refs for _, refs in rows]
    streams = reference_streams(hypotheses, references)
    for score, theirs in (
        (bleu(hypotheses, references, "en", ONE), BLEU()),
        (chrf(hypotheses, references, ONE), CHRF()),
        (chrf(hypotheses, references, ONE, word_order=2), CHRF(word_order=2)),
    ):
        assert score.value == pytest.approx(theirs.corpus_score(hypotheses, streams).score, abs=1e-9)
        assert score.signature.startswith(theirs.get_signature().format())


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(TEXT, FULL), min_size=1, max_size=6), data=st.data())
def test_scores_do_not_depend_on_the_order(rows: list[tuple[str, str]], data: st.DataObject) -> None:
    moved = data.draw(st.permutations(rows))
    for function in (lambda h, r: bleu(h, r, "en", ONE), lambda h, r: chrf(h, r, ONE)):
        before, after = (function([t for t, _ in x], [[r] for _, r in x]).value for x in (rows, moved))
        assert before == pytest.approx(after)
        assert 0 <= before <= 100 + 1e-9


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(FULL.filter(lambda text: len(text.split()) > 3), min_size=1, max_size=5))
def test_reference_itself_scores_one_hundred(texts: list[str]) -> None:
    references = [["a mat", text] for text in texts]
    assert bleu(texts, references, "en", ONE).value == pytest.approx(100.0)
    assert chrf(texts, references, ONE).value == pytest.approx(100.0)


@pytest.mark.parametrize(("language", "tokenizer"), [
    ("zh", "zh"), ("zh-Hant", "zh"), ("zh_CN", "zh"), ("ja", "char"), ("ko-KR", "char"), ("th", "char"), ("de", "13a"),
])  # fmt: skip
def test_tokenizer_follows_the_language(language: str, tokenizer: str) -> None:
    assert f"tok:{tokenizer}|" in bleu(["我 喜欢 猫 和 狗"], [["我喜欢猫和狗"]], language, ONE).signature


def test_chinese_is_scored_by_characters() -> None:
    """Split at spaces the sentence is one word: no 4-gram, no score."""
    text = "我喜欢猫和狗。"
    assert bleu([text], [[text]], "zh", ONE).value == pytest.approx(100.0)
    assert bleu([text], [[text]], "en", ONE).value == 0.0


def test_interval_is_that_of_corpus_scores_of_the_drawn_texts() -> None:
    """Not of averaged scores of texts: each draw is scored by sacrebleu as a corpus of its own."""
    hypotheses = ["the cat sat on the mat", "a dog ran far away today", "yes it was", "on the red mat a cat sat"]
    references = [
        ["the cat sat on a mat"],
        ["the dog ran far away today"],
        ["yes it was so"],
        ["a cat sat on the red mat"],
    ]
    bootstrap = Bootstrap(replicates=25, seed=4)
    for score, theirs in (
        (bleu(hypotheses, references, "en", bootstrap), BLEU()),
        (chrf(hypotheses, references, bootstrap), CHRF()),
    ):
        values = []
        for r in range(25):
            items = np.repeat(np.arange(4), drawn(4, 4, r))
            values.append(
                theirs.corpus_score([hypotheses[i] for i in items], [[references[i][0] for i in items]]).score
            )
        assert (score.low, score.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_two_translations_are_compared_on_the_same_draws() -> None:
    references = [[f"the cat sat on mat number {i} today"] for i in range(12)]
    ours = [refs[0] for refs in references]
    theirs = [text.replace("sat", "lay") if i % 2 else text for i, text in enumerate(ours)]
    bootstrap = Bootstrap(replicates=200)
    sums = [segment_sums(bleu_scorer("en"), texts, references, bootstrap) for texts in (ours, theirs)]
    difference = paired_difference(*sums, bleu_of_sums)
    assert difference.value == pytest.approx(100 - bleu(theirs, references, "en", ONE).value)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p == pytest.approx(1 / 201)


def test_no_texts_have_no_score() -> None:
    assert math.isnan(bleu([], [], "en", ONE).value)
    assert math.isnan(chrf([], [], ONE).value)
