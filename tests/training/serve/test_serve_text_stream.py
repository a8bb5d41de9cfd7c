"""Text piece by piece: never half a character, never a stop string, and joined the whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.serve.text_stream import TextStream

TEXT = st.text(alphabet="aeé水 🙂\n.", max_size=30)


def pushed(
    tokenizer: Any, tokens: list[int], stops: tuple[str, ...], prompt: list[int]
) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, prompt, stops)
    pieces, first = [], 0
    for token in tokens:
        stream.push(token)
        if stream.stopped:
            break
        released = stream.release()
        assert released.first == first
        first = released.last
        pieces.append(released.text)
    pieces.append(stream.finish().text)
    return pieces, stream


@pytest.fixture(scope="module")
def tokenizer(greedy: Any) -> Any:
    return greedy.tokenizer


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, before=TEXT)
def test_pieces_joined_are_the_text(tokenizer: Any, text: str, before: str) -> None:
    prompt = tokenizer.encode(before, add_special_tokens=False)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces, stream = pushed(tokenizer, tokens, (), prompt)
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)
    assert "".join(stream.pieces(0, len(tokens))) == text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, stop=st.text(alphabet="aeé水 🙂", min_size=1, max_size=3), other=st.sampled_from(("ae", "\n.", "zz")))
def test_nothing_from_the_first_stop_on_is_released(tokenizer: Any, text: str, stop: str, other: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces, stream = pushed(tokenizer, tokens, (stop, other), [])
    wanted = min((text[: text.index(one)] for one in (stop, other) if one in text), key=len, default=text)
    assert "".join(pieces) == wanted
    assert stream.stopped == (wanted != text or any(text.endswith(one) for one in (stop, other)))


def test_half_a_character_at_the_end_is_shown_as_the_tokenizer_shows_it(tokenizer: Any) -> None:
    tokens = tokenizer.encode("rye 水", add_special_tokens=False)[:-1]
    pieces, _ = pushed(tokenizer, tokens, (), [])
    assert "".join(pieces) == tokenizer.decode(tokens)
