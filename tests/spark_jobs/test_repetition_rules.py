import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.repetition_rules import DUP_NGRAMS, NAMES, TOP_NGRAMS, measure

TEXTS = st.lists(st.text(st.sampled_from("ab \t\r\n\x0b\x85\u2028e\u0301天气ก\u0e34."), max_size=60), max_size=5)


# Thai and Han letters with the marks behind them are words; U+0E34 is a mark, not a letter
WORDS = re.compile(r"[\u0e01-\u0e30\u4e00-\u9fff]\u0e34*|[^\s\u0e01-\u0e34\u4e00-\u9fff]+\u0e34*|\u0e34+")


def measured(text: str) -> dict[str, float]:
    return {name: float(values[0]) for name, values in measure(pa.array([text], pa.string())).items()}


def in_python(text: str) -> dict[str, float]:
    """The definitions, slowly."""
    raw = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    lines = [line for line in raw if line]
    paragraphs: list[tuple[str, ...]] = []
    for block in "\n".join(raw).split("\n\n"):
        block_lines = tuple(line for line in block.split("\n") if line)
        paragraphs += [block_lines] if block_lines else []
    values = dict.fromkeys(NAMES, 0.0)
    for kind, items, size in (("line", lines, len), ("paragraph", paragraphs, lambda p: sum(map(len, p)))):
        later = [item for place, item in enumerate(items) if item in items[:place]]
        if items:
            values[f"dup_{kind}_ratio"] = len(later) / len(items)
            values[f"dup_{kind}_char_ratio"] = sum(map(size, later)) / sum(map(size, items))
    words = WORDS.findall(text)
    for n in (*TOP_NGRAMS, *DUP_NGRAMS):
        grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
        often = {gram for gram in grams if grams.count(gram) >= 2}
        if n <= 4 and often:
            often = {min(often, key=lambda gram: (-grams.count(gram), -sum(map(len, gram)), grams.index(gram)))}
        inside = {at + k for at, gram in enumerate(grams) if gram in often for k in range(n)}
        if words:
            kind = "top" if n <= 4 else "dup"
            values[f"{kind}_{n}gram_ratio"] = sum(len(words[at]) for at in inside) / sum(map(len, words))
    return values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", dict.fromkeys(NAMES, 0.0)),
        ("one two", dict.fromkeys(NAMES, 0.0)),  # nothing occurs twice
        (
            "ha " * 10,
            {f"top_{n}gram_ratio": 1.0 for n in (2, 3, 4)} | {f"dup_{n}gram_ratio": 1.0 for n in range(5, 10)},
        ),
        ("ha " * 10, {"dup_10gram_ratio": 0.0}),
        ("to be or not to be that is the question", {"top_2gram_ratio": 0.2667, "top_3gram_ratio": 0.0}),
        (" ".join("abcdefgh" * 2), {"dup_5gram_ratio": 1.0, "dup_8gram_ratio": 1.0, "dup_9gram_ratio": 0.0}),
        (
            "x y\nfoo bar baz qux\nx y\r\nfoo bar baz qux\n\nlast line here",
            {"dup_line_ratio": 0.4, "dup_line_char_ratio": 0.36, "dup_paragraph_ratio": 0.0},
        ),
        ("a\n\n\nb\n\n\nc", {"dup_line_ratio": 0.0}),  # empty lines are no copies of one another
        ("p q\nr\n\np q\nr\n\nz", {"dup_paragraph_ratio": 1 / 3, "dup_paragraph_char_ratio": 4 / 9}),
        ("ab c a bc", {"top_2gram_ratio": 0.0}),  # joined without a separator the two would be equal
        ("a\u2028a\x0ba", {"dup_line_ratio": 0.0}),  # one line, although str.splitlines sees three
    ],
)
def test_measure_gives_the_golden_values(text: str, expected: dict[str, float]) -> None:
    assert {name: measured(text)[name] for name in expected} == pytest.approx(expected, abs=1e-4)


@given(TEXTS)
@settings(deadline=None, max_examples=200)
def test_measure_equals_its_definition_and_lies_between_0_and_1(texts: list[str]) -> None:
    values = measure(pa.array(texts, pa.string()))
    for place, text in enumerate(texts):
        found = {name: float(column[place]) for name, column in values.items()}
        assert all(0 <= value <= 1 for value in found.values())
        assert found == pytest.approx(in_python(text))


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
def test_measure_of_other_line_endings_equals_that_of_lf(ending: str) -> None:
    text = "x y\nfoo\nx y\n\nfoo\n\nx y\n"
    assert measured(text.replace("\n", ending)) == measured(text)
