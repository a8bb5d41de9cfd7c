import pyarrow as pa
import pytest

from spark_jobs.line_rules import ends_sentence, is_placeholder, keep_all_lines, measure


def measured(text: str) -> dict[str, float]:
    return {name: float(values[0]) for name, values in measure(pa.array([text], pa.string()))._asdict().items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"terminal_line_ratio": 0, "short_line_ratio": 0, "line_word_ratio": 0, "num_sentences": 0}),
        ("Good text.\r\nMore text.\r\n" * 20, {"terminal_line_ratio": 1, "line_word_ratio": 0.5, "num_sentences": 40}),
        ("今天很好。今天很好！\n走吧", {"terminal_line_ratio": 0.5, "num_sentences": 3}),
        ("كيف حالك؟\nयह अच्छा है।", {"terminal_line_ratio": 1, "num_sentences": 2}),
        ('Is it? Yes (it is.) "No." ok\nshort\n', {"terminal_line_ratio": 0, "num_sentences": 5}),
        ("He said (so.)\nVersion 1.2 of it", {"terminal_line_ratio": 0.5, "num_sentences": 2}),
        ("x" * 30 + "\n" + "y" * 29, {"short_line_ratio": 0.5}),
        ("a\u2028b\x0bc.", {"terminal_line_ratio": 1, "line_word_ratio": 0}),  # one line
        ("...\n!!!", {"num_sentences": 0}),
    ],
)
def test_measure_gives_the_golden_values(text: str, expected: dict[str, float]) -> None:
    assert {name: measured(text)[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("Good.", True), ("Good", False), ("Good?", True), ('He said "no."', True), ('He said "no"', True), ("Wait...", False),
        ("Wait\u2026", False), ("今天很好。", True), ("好吗？", True), ("؟", True), ("है।", True), ("", False), ("(See there.)", True),
    ],
)  # fmt: skip
def test_a_sentence_ends_in_many_scripts(line: str, ends: bool) -> None:
    assert ends_sentence(line) is ends


@pytest.mark.parametrize(
    ("text", "min_words", "kept"),
    [
        ("Enable javascript.\nWe use cookies.", 1, ""),
        ("This one is good.[1]\ntoo short.\nthis has no end\nWait for it now...", 3, "This one is good."),
        ("One two three.\nOne two three four five.", 5, "One two three four five."),
        ("Fine [edit] as it is [citation needed].", 3, "Fine  as it is ."),
        ("Read the Privacy Policy of it.", 3, ""),
        ("A " + "x" * 1001 + " word here.", 3, ""),
        ("今天很好。\r\n没有句号", 3, "今天很好。"),
    ],
)
def test_c4_keeps_lines_of_prose(text: str, min_words: int, kept: str) -> None:
    assert keep_all_lines(pa.array(["unlike", text]), min_words).to_pylist()[1] == kept


def test_placeholder_texts_are_found() -> None:
    assert is_placeholder("Lorem Ipsum dolor")
    assert is_placeholder("int main() { }")
    assert not is_placeholder("plain text")
