"""Words changed in place: what stands between them stays, protected ranges mark the same characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.augment.draws import Draws
from training.augment.edits import is_free, rewritten, word_ranges

ALPHABET = "aZé 猫\n.,-'’1अ\U0001f600ि"


def test_words_hyphens_and_apostrophes_inside_belong_to_them() -> None:
    text = "It's well-made , isn’t it - 2nd ?"
    assert [text[a:b] for a, b in word_ranges(text)] == ["It's", "well-made", "isn’t", "it", "2nd"]


@pytest.mark.parametrize(
    ("text", "gone", "expected"),
    [
        ("one two three", {1}, "one three"),
        ("one two three", {0}, "two three"),
        ("one two three", {2}, "one two"),
        ("one two three", {0, 1}, "three"),
        ("one two three", {1, 2}, "one"),
        ("yes, but no.", {1}, "yes, no."),
        ("yes, but no.", {2}, "yes, but."),
        ("(one) two", {0}, "() two"),
        ("a\n\nb c", {1}, "a c"),
    ],
)
def test_rewritten_word_left_out_takes_the_space_before_it(text: str, gone: set[int], expected: str) -> None:
    words = word_ranges(text)
    new = [None if i in gone else text[a:b] for i, (a, b) in enumerate(words)]
    assert rewritten(text, words, new, [])[0] == expected


def test_rewritten_space_inside_a_protected_range_stays() -> None:
    text = "see New York now"
    words = word_ranges(text)
    new_text, [span] = rewritten(text, words, ["see", "New", "York", None], [(4, 13)])
    assert (new_text, new_text[slice(*span)]) == ("see New York ", "New York ")


@st.composite
def changed_texts(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]], list[str | None]]:
    text = draw(st.text(ALPHABET, max_size=60))
    cuts = st.integers(0, len(text))
    spans = [(min(a, b), max(a, b)) for a, b in draw(st.lists(st.tuples(cuts, cuts), max_size=3))]
    new: list[str | None] = []
    for word in word_ranges(text):
        old = text[slice(*word)]
        new.append(draw(st.sampled_from([old, None, "", "x", old * 2])) if is_free(word, spans) else old)
    return text, spans, new


@given(changed_texts())
def test_rewritten_protected_ranges_mark_the_same_characters(
    case: tuple[str, list[tuple[int, int]], list[str | None]],
) -> None:
    text, spans, new = case
    new_text, places = rewritten(text, word_ranges(text), new, spans)
    assert [new_text[a:b] for a, b in places] == [text[a:b] for a, b in spans]


@given(changed_texts())
def test_rewritten_leaves_all_but_words_and_white_space_as_it_was(
    case: tuple[str, list[tuple[int, int]], list[str | None]],
) -> None:
    text, spans, new = case
    words = word_ranges(text)
    new_text = rewritten(text, words, new, spans)[0]
    pieces, at = [], 0
    for (start, end), word in zip(words, new, strict=True):
        pieces += [text[at:start], word or ""]
        at = end
    expected = "".join(pieces) + text[at:]
    assert "".join(new_text.split()) == "".join(expected.split())
    if None not in new:
        assert new_text == expected


def test_draws_of_the_same_names_are_the_same_on_every_machine() -> None:
    """The first draws of one stream, written down: whoever changes them changes all augmented sets."""
    draws = Draws(7, "word_noise", "00ff", 1)
    assert [draws.below(1000) for _ in range(5)] == [50, 759, 408, 381, 694]
