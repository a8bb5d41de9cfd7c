"""Tokens to text, one at a time: no half characters, and nothing from a stop string on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream

CONTEXT = 16  # last tokens of the prompt that decoding sees: whether a space or half a character comes before


@dataclass(frozen=True)
class Released:
    """Text that is final, and the tokens [first, last) it came with."""

    text: str
    first: int
    last: int


class TextStream:
    """tokenizer: of `transformers`, with a backend of `tokenizers`. stops: text that ends the answer, and is not part of it."""

    def __init__(self, tokenizer: Any, prompt: list[int], stops: tuple[str, ...] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._context = prompt[-CONTEXT:]
        self._stream = DecodeStream(ids=list(self._context), skip_special_tokens=True)
        self._tokens: list[int] = []
        self._ends: list[int] = []  # length of the text after each token
        self._released = 0  # tokens
        self._told = 0  # characters
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> None:
        """Ignored once a stop string was found."""
        if self.stopped:
            return
        self._tokens.append(token)
        piece = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        self._grow(piece)

    def _grow(self, piece: str) -> None:
        searched = max(0, len(self.text) - max((len(stop) for stop in self._stops), default=1) + 1)
        self.text += piece
        found = [place for stop in self._stops if (place := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        self._ends.append(len(self.text))

    def release(self) -> Released:
        """What cannot become part of a stop string any more."""
        safe = len(self.text) if self.stopped else len(self.text) - self._held()
        last = self._released
        while last < len(self._ends) and self._ends[last] <= safe:
            last += 1
        return self._tell(last)

    def finish(self) -> Released:
        """The rest, with a character that stayed half shown as the tokenizer shows it."""
        if not self.stopped and self._tokens:
            before = self._decode(self._context)
            whole = self._decode([*self._context, *self._tokens])[len(before) :]
            if whole.startswith(self.text) and len(whole) > len(self.text):
                self._ends.pop()
                self._grow(whole[len(self.text) :])
        return self._tell(len(self._ends))

    def _tell(self, last: int) -> Released:
        first, self._released = self._released, last
        end = min(self._ends[last - 1], len(self.text)) if last else 0
        text = self.text[self._told : end]
        self._told = max(self._told, end)
        return Released(text, first, last)

    def pieces(self, first: int, last: int) -> list[str]:
        """What each token added; joined they are the text."""
        begins = [0, *self._ends]
        return [self.text[begins[i] : self._ends[i]] for i in range(first, last)]

    def offset(self, token: int) -> int:
        """Characters of the answer before a token."""
        return self._ends[token - 1] if token else 0

    def _held(self) -> int:
        """Characters at the end that are the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text
