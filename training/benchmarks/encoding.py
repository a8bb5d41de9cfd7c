"""Texts of requests as token ids, so that what is scored is exactly what was asked.

The split between context and continuation is one of tokens. It is clean where the tokens of both together begin with
those of the context; then they are split there. Where a token spans the two ("Ans" + "wer" is one token), there is no
such place: cutting by count would score nothing, or another text. Then the continuation is encoded as a text of its own
and the answer is flagged. Spaces at the end of a context are moved to the continuation first: words are encoded with the
space before them.

The beginning token is context, once, and never scored: models are trained with it, and one that is asked for the first
token needs something before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from spark_jobs.errors import DataError
from training.benchmarks.requests import Flag

Beginning = Literal["always", "tokenizer"]


@dataclass(frozen=True)
class Pair:
    """Ids of context and continuation, as the model is to see them, and how they came about."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    flags: tuple[Flag, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        return self.context + self.continuation


@dataclass(frozen=True)
class Encoder:
    """tokenizer: its special tokens, written in a text, are plain text. begin_id: of the token before a text. puts_beginning:
    whether contexts begin with it; an empty one always does. limit: tokens a model can see at once."""

    tokenizer: Tokenizer
    begin_id: int
    puts_beginning: bool
    limit: int

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def pair(self, context: str, continuation: str) -> Pair:
        """Raises: DataError if there is nothing to score."""
        if not continuation:
            raise DataError(f"an empty continuation after {context[-40:]!r} has no likelihood: give a text")
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        before, whole = self.ids(context) if context else [], self.ids(context + continuation)
        clean = whole[: len(before)] == before and len(whole) > len(before)
        after = whole[len(before) :] if clean else self.ids(continuation)
        flags: tuple[Flag, ...] = () if clean else ("boundary",)
        return self._fitted(before, after, flags)

    def prompt(self, context: str, room: int) -> Pair:
        """A context with `room` tokens left for what is written after it."""
        return self._fitted(self.ids(context), [], (), room)

    def text(self, text: str) -> list[int]:
        """Ids of a text that is scored whole; the beginning token is put before it by whoever scores it."""
        return self.ids(text)

    def decoded(self, before: Sequence[int], new: Sequence[int]) -> str:
        """The text of the new ids alone. Decoded behind what came before: alone, a decoder may drop a leading space."""
        old = self.tokenizer.decode(list(before), skip_special_tokens=True)
        both = self.tokenizer.decode([*before, *new], skip_special_tokens=True)
        if both.startswith(old):
            return both[len(old) :]
        return str(self.tokenizer.decode(list(new), skip_special_tokens=True))

    def _fitted(self, before: Sequence[int], after: Sequence[int], flags: tuple[Flag, ...], room: int = 0) -> Pair:
        """With the beginning token, and the context cut from the left: the last token of a continuation is predicted, never
        seen, so one more than `limit` fits."""
        begins = [self.begin_id] if self.puts_beginning or not before else []
        space = self.limit - len(begins) - (len(after) - 1 if after else room)
        if space < 0 or (space == 0 and not begins):
            return Pair((), tuple(after), (*flags, "too_long"))
        if len(before) > space:
            before, flags = before[len(before) - space :], (*flags, "truncated")
        return Pair((*begins, *before), tuple(after), flags)


def encoder_of(folder: Path, limit: int, beginning: Beginning) -> Encoder:
    """Of a model folder. beginning `tokenizer`: contexts begin as the folder's own tokenizer begins them.

    Raises: DataError if the folder has no tokenizer, or names no token that a text can begin with.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise DataError(f"{folder} has no tokenizer.json: benchmarks are texts; give a folder with its tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    own = tokenizer.encode("a", add_special_tokens=True).ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    own_beginning = own[: len(own) - len(plain)] if own[len(own) - len(plain) :] == plain else []
    tokenizer.encode_special_tokens = True
    begin_id = begin_id_of(folder)
    if beginning == "always":
        return Encoder(tokenizer, begin_id, True, limit)
    if len(own_beginning) > 1:
        raise DataError(f"{path} begins a text with {len(own_beginning)} tokens: set beginning to always")
    return Encoder(tokenizer, own_beginning[0] if own_beginning else begin_id, bool(own_beginning), limit)


def begin_id_of(folder: Path) -> int:
    """The beginning-of-text token of config.json; where a model has none, its end token, which came before every text."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id"):
        told = config.get(name)
        told = told[0] if isinstance(told, list) and told else told
        if isinstance(told, int):
            return told
    raise DataError(
        f"{folder}/config.json names neither bos_token_id nor eos_token_id: a text has nothing to begin with"
    )
