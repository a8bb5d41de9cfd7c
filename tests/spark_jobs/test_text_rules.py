import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.clean import label_batch
from spark_jobs.quality_rules import first_broken
from spark_jobs.quality_rules import measure as measure_rules
from spark_jobs.schemas import DOCUMENTS
from spark_jobs.specs import CleanSpec
from spark_jobs.text_rules import measure, normalise

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.text(st.sampled_from("ab \t\r\n\x00\x0b\x85\u2028\ufeffe\u0301…#.-"), max_size=40)
)
GOOD = (
    "The cat sat on the mat and looked out of the window, because it had to be fed with something that it liked. " * 3
)


def normalised(text: str) -> str:
    return normalise(pa.array([text], pa.string()))[0].as_py()


def measured(text: str) -> dict[str, float]:
    return {name: values[0] for name, values in measure(pa.array([text], pa.string()))._asdict().items()}


def broken_rule(text: str, language: str = "", **thresholds: float) -> str | None:
    spec = CleanSpec(**thresholds)
    measured = measure_rules(pa.array([normalised(text)], pa.string()), spec)
    return first_broken(measured, spec, np.array([language], object), np.array([0.9]))[0][0]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("", ""),
        ("a\r\nb\rc\n", "a\nb\nc"),
        ("a\r\x00\nb", "a\nb"),  # what stands between CR and LF is gone before they are joined
        ("a\x00b\x07c\x7fd", "abcd"),
        ("a\x0bb\x0cc\x85d\x1ce", "a b c d e"),
        ("\ufeffa\ufeffb", "ab"),
        ("e\u0301", "\u00e9"),
        ("e\x00\u0301", "\u00e9"),  # removing a control character must not leave an uncomposed pair
        ("a  \t\n  b", "a\n  b"),
        ("\n \n  a\n\n\n\n\nb\n\n", "  a\n\nb"),
        ("a\n \t \n \n \nb", "a\n\nb"),
        ("a\u2028b", "a\u2028b"),
        ("हिन्दी ไทย Tiếng", "हिन्दी ไทย Tiếng"),
    ],
)
def test_normalise_follows_its_policy(raw: str, clean: str) -> None:
    assert normalised(raw) == clean


@given(TEXTS)
@settings(deadline=None, max_examples=150)
def test_normalise_applied_twice_changes_nothing(texts: list[str]) -> None:
    once = normalise(pa.array(texts, pa.string()))
    assert normalise(once).to_pylist() == once.to_pylist()
    for text in once.to_pylist():
        assert unicodedata.is_normalized("NFC", text)
        assert "\r" not in text
        assert "\n\n\n" not in text


@given(TEXTS)
@settings(deadline=None, max_examples=150)
def test_normalise_keeps_every_visible_character(texts: list[str]) -> None:
    for raw, clean in zip(texts, normalise(pa.array(texts, pa.string())).to_pylist(), strict=True):
        kept = [c for c in raw if unicodedata.category(c) != "Cc" and c not in " \ufeff"]
        assert unicodedata.normalize("NFC", "".join(kept)) == unicodedata.normalize(
            "NFC", "".join(c for c in clean if c not in " \t\n")
        )


@given(TEXTS)
@settings(deadline=None, max_examples=150)
def test_measures_of_any_text_are_finite_and_ratios_bounded(texts: list[str]) -> None:
    measures = measure(pa.array(texts, pa.string()))
    for values in measures:
        assert len(values) == len(texts)
        assert (values >= 0).all()
    bounded = (
        "bullet_line_ratio",
        "ellipsis_line_ratio",
        "alpha_word_ratio",
        "unspaced_word_ratio",
    )
    for ratio in (getattr(measures, name) for name in bounded):
        assert (ratio <= 1).all()
    assert (measures.num_stop_words <= 8).all()


@given(TEXTS)
@settings(deadline=None, max_examples=50)
def test_measures_do_not_depend_on_the_neighbours_in_a_batch(texts: list[str]) -> None:
    together = measure(pa.array(texts, pa.string()))
    alone = [measured(text) for text in texts]
    assert [dict(zip(together._fields, map(float, row), strict=True)) for row in zip(*together, strict=True)] == alone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"num_words": 0, "mean_word_length": 0, "symbol_word_ratio": 0, "alpha_word_ratio": 0}),
        ("one two", {"num_words": 2, "mean_word_length": 3, "alpha_word_ratio": 1}),
        ("one -- 22 !", {"num_words": 2, "mean_word_length": 2.5, "alpha_word_ratio": 0.25}),
        ("a # b ## c", {"symbol_word_ratio": 0.6}),
        ("a... b… c....", {"symbol_word_ratio": 1.0}),
        ("a...... b", {"symbol_word_ratio": 1.0}),
        ("- a\n* b\n• c\nd", {"bullet_line_ratio": 0.75}),
        ("a...\nb…\nc.\n\nd .. .", {"ellipsis_line_ratio": 0.5}),
        ("THE And that, (with) them", {"num_stop_words": 4}),
        ("the the the", {"num_stop_words": 1}),
        (
            "a\u2028b\x0bc ...",
            {"num_words": 3, "ellipsis_line_ratio": 1.0},
        ),  # one line, although str.splitlines sees three
        ("a\u00a0b\u3000c", {"num_words": 3}),
        ("हिन्दी विकिपीडिया", {"num_words": 2, "alpha_word_ratio": 1}),
        ("今天天气很好。", {"num_words": 6, "alpha_word_ratio": 1, "mean_word_length": 0, "unspaced_word_ratio": 1}),
        ("「今天」……好", {"num_words": 3, "alpha_word_ratio": 1}),
        ("Python是很好的语言 ok", {"num_words": 8, "mean_word_length": 4, "unspaced_word_ratio": 0.75}),
        ("ภาษาไทย", {"num_words": 7, "alpha_word_ratio": 1}),
        ("เก้าสิบ", {"num_words": 5}),  # two marks belong to their letters
        ("ราคา ๑๒๓", {"num_words": 7, "alpha_word_ratio": 4 / 7}),
        ("ភាសាខ្មែរ မြန်မာ ພາສາລາວ", {"unspaced_word_ratio": 1, "alpha_word_ratio": 1}),
        ("한국어 문장입니다", {"num_words": 2, "mean_word_length": 8, "unspaced_word_ratio": 0}),
        ("3月5日", {"num_words": 4, "alpha_word_ratio": 0.5}),
        ("。。。 好", {"num_words": 1, "alpha_word_ratio": 0.5}),
    ],
)
def test_measure_gives_the_golden_values(text: str, expected: dict[str, float]) -> None:
    assert {name: measured(text)[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
def test_measure_of_other_line_endings_equals_that_of_lf(ending: str) -> None:
    text = "Good text...\n- More text.\n\n" * 20
    assert measured(text.replace("\n", ending)) == measured(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        (GOOD.upper(), None),
        ("", "empty"),
        ("\n\n", "empty"),
        ("   ", "empty"),
        ("\x00\x01", "empty"),
        ("word " * 49, "too_few_words"),
        ("ab " * 60, "words_too_short"),
        ("internationalisation " * 60, "words_too_long"),
        (GOOD + "# " * 30, "symbols"),
        ("\n".join("- " + line for line in [GOOD] * 10), "bullet_lines"),
        ("\n".join([GOOD + "..."] * 10), "ellipsis_lines"),
        (GOOD + "1234 " * 60, "few_alphabetic_words"),
        ("Katze sitzt auf der Matte " * 20, "few_stop_words"),
        ("今天天气很好。" * 20, "few_stop_words"),  # by no other rule
    ],
)
def test_rules_name_the_first_one_broken(text: str, reason: str | None) -> None:
    assert broken_rule(text) == reason


def test_rules_keep_a_document_of_exactly_the_threshold() -> None:
    fifty = "the " * 25 + "and " * 25
    assert broken_rule(fifty) is None
    assert broken_rule(fifty, min_words=51) == "too_few_words"
    assert broken_rule(fifty, max_words=50) is None
    assert broken_rule(fifty, max_words=49) == "too_many_words"
    assert broken_rule("Katze sitzt auf der Matte " * 20, min_stop_words=0) is None


def test_label_batch_records_value_and_threshold() -> None:
    row = {
        "doc_id": "0" * 32, "text": "Only four words here.\r\n", "source": "s", "origin": "o", "priority": 1,
        "language": "", "language_score": 0.0,
    }  # fmt: skip
    labelled = label_batch(pa.RecordBatch.from_pylist([row]), CleanSpec()).to_pylist()[0]
    assert labelled["text"] == "Only four words here."
    assert (labelled["reason"], labelled["value"], labelled["threshold"]) == ("too_few_words", 4.0, 50.0)
    assert labelled["num_bytes"] == 21
    assert set(DOCUMENTS) < set(labelled)
    assert (labelled["language"], labelled["detail"]) == ("en", "")


def test_language_rules_ask_english_for_stop_words_and_name_the_language_refused() -> None:
    assert broken_rule("Katze sitzt auf der Matte " * 20, language="de") is None
    assert broken_rule("Katze sitzt auf der Matte " * 20, language="en") == "few_stop_words"
    assert broken_rule(GOOD, language="en", languages=("de", "fr")) == "language"
    assert broken_rule(GOOD, language="en", languages=("de", "en"), min_language_score=0.9) is None
    assert broken_rule(GOOD, language="en", min_language_score=0.91) == "language"
    row = dict.fromkeys(DOCUMENTS, "") | {"text": GOOD, "priority": 1, "language_score": 0.0}
    (labelled,) = label_batch(pa.RecordBatch.from_pylist([row]), CleanSpec(languages=("de",))).to_pylist()
    assert (labelled["reason"], labelled["detail"], labelled["threshold"]) == ("language", "en", 0.0)


def test_label_batch_masks_before_it_measures() -> None:
    row = dict.fromkeys(DOCUMENTS, "") | {"text": GOOD + " jo@example.org", "priority": 1, "language_score": 0.0}
    (labelled,) = label_batch(pa.RecordBatch.from_pylist([row]), CleanSpec()).to_pylist()
    assert labelled["text"].endswith("<email>")
    assert (labelled["masked_email"], labelled["masked_ip"], labelled["reason"]) == (1, 0, None)


def test_label_batch_takes_nul_out_and_says_so() -> None:
    row = dict.fromkeys(DOCUMENTS, "") | {"text": GOOD + "a\x00b", "priority": 1, "language_score": 0.0}
    (labelled,) = label_batch(pa.RecordBatch.from_pylist([row]), CleanSpec()).to_pylist()
    assert labelled["text"].endswith("ab")
    assert (labelled["mended_nul"], labelled["mended_mojibake"]) == (1, 0)
