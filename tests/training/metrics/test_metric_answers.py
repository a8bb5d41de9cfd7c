from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.errors import DataError
from training.metrics.answers import answer_scores, judge
from training.metrics.bootstrap import Bootstrap
from training.metrics.tokens import squad_tokens, unicode_tokens, words

ONE = Bootstrap(replicates=1)
TEXT = st.text(st.sampled_from("ab the.,喜欢é"), max_size=12)


@pytest.mark.parametrize(("text", "tokens"), [
    ("The  Golden Gate, a bridge.", ["golden", "gate", "bridge"]),
    ("An apple's core", ["apples", "core"]),
    ("the.", []),
    ("a-levels and A-1", ["alevels", "and", "a1"]),
    ("$5.30 (net)", ["530", "net"]),
    ("Theatre", ["theatre"]),
])  # fmt: skip
def test_squad_tokens_of_english(text: str, tokens: list[str]) -> None:
    assert squad_tokens(text) == tokens


@pytest.mark.parametrize(("text", "tokens"), [
    ("北京（中国）", ["北", "京", "中", "国"]),
    ("iPhone 15在上海", ["iphone", "15", "在", "上", "海"]),
    ("ประเทศ", list("ประเทศ")),
    ("«A la carte»", ["a", "la", "carte"]),
    ("cafe\u0301", ["café"]),
    ("서울 대학교", ["서울", "대학교"]),
])  # fmt: skip
def test_unicode_tokens_of_other_scripts(text: str, tokens: list[str]) -> None:
    assert unicode_tokens(text) == tokens


def test_words_keep_marks_that_are_no_letters() -> None:
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("Don't 3.5_x") == ["don", "t", "3", "5", "x"]


@pytest.mark.parametrize(("references", "answer", "exact", "f1"), [
    (["the red fox"], "Red fox!", True, 1.0),
    (["red fox"], "red fox ran", False, 0.8),
    (["red red fox"], "red", False, 0.5),
    (["red", "blue fox"], "blue fox", True, 1.0),
    (["red fox", "blue"], "the blue sky", False, 2 / 3),
    ([], "", True, 1.0),
    ([], "the.", True, 1.0),
    ([], "red", False, 0.0),
    (["red"], "", False, 0.0),
    (["the"], "", True, 1.0),
])  # fmt: skip
def test_answer_is_judged_by_its_best_reference(references: list[str], answer: str, exact: bool, f1: float) -> None:
    assert judge(references, answer, "squad") == (exact, pytest.approx(f1))


def test_chinese_answers_overlap_by_characters() -> None:
    """Four characters of five shared: 2 x 4 / (4 + 5). Split at spaces they would be two words that differ."""
    assert judge(["中国北京市"], "中国北京", "unicode") == (False, pytest.approx(8 / 9))
    assert judge(["中国北京市"], "中国北京", "squad") == (False, 0.0)


def test_scores_tell_answerable_questions_from_others() -> None:
    scores = answer_scores([["red"], ["red fox"], [], []], ["red", "red", "", "red"], ONE)
    assert {name: score.value for name, score in scores.items()} == {
        "exact_match": 0.5,
        "token_f1": pytest.approx((1 + 2 / 3 + 1 + 0) / 4),
        "exact_match/answerable": 0.5,
        "token_f1/answerable": pytest.approx((1 + 2 / 3) / 2),
        "exact_match/unanswerable": 0.5,
    }
    assert [score.n for score in scores.values()] == [4, 4, 2, 2, 2]


def test_answers_without_unanswerable_questions_have_two_scores() -> None:
    assert list(answer_scores([["red"]], ["red"], ONE)) == ["exact_match", "token_f1"]


def test_missing_answer_is_wrong_also_for_an_unanswerable_question() -> None:
    scores = answer_scores([[], ["red"]], [None, "red"], ONE)
    assert scores["exact_match"].value == 0.5
    assert scores["exact_match"].n_invalid == scores["token_f1"].n_invalid == 1
    assert scores["exact_match/unanswerable"].value == 0.0
    assert scores["exact_match/answerable"].n_invalid == 0


def test_text_in_place_of_a_list_of_references_is_refused() -> None:
    with pytest.raises(DataError, match="references of item 1 are the text 'red'"):
        answer_scores([["red"], "red"], ["red", "red"], ONE)


def test_signature_names_the_normalization() -> None:
    assert "normalization:unicode" in answer_scores([["a"]], ["a"], ONE, "unicode")["token_f1"].signature


@settings(deadline=None, max_examples=50)
@given(pairs=st.lists(st.tuples(st.lists(TEXT, max_size=3), TEXT), min_size=1, max_size=8), data=st.data())
def test_scores_are_bounded_whatever_the_order(pairs: list[tuple[list[str], str]], data: st.DataObject) -> None:
    moved = data.draw(st.permutations(pairs))
    for normalization in ("squad", "unicode"):
        before, after = (
            answer_scores([r for r, _ in rows], [a for _, a in rows], ONE, normalization) for rows in (pairs, moved)
        )
        for name, score in before.items():
            assert score.value == pytest.approx(after[name].value, nan_ok=True)
            assert math.isnan(score.value) or 0 <= score.value <= 1
        assert before["token_f1"].value >= before["exact_match"].value - 1e-12


@settings(deadline=None, max_examples=50)
@given(answers=st.lists(TEXT, min_size=1, max_size=8))
def test_reference_itself_is_always_right(answers: list[str]) -> None:
    scores = answer_scores([[answer] for answer in answers], answers, ONE, "unicode")
    assert (scores["exact_match"].value, scores["token_f1"].value) == (1.0, 1.0)
