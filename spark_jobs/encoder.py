"""Text to token ids: `tokenizers` is the reference, `kitoken` (Rust, about ten times as fast) stands in where it gives the same.

Before a run the two are compared on a sample of its documents and on texts that have been trouble before; one difference,
and the reference does all of it. Texts with a contraction behind white space other than a space always go to the reference:
there kitoken 0.11 splits GPT-2's pattern in another place (`\\n's` + `elf`, not `\\n` + `'self`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kitoken import Kitoken
    from tokenizers import Tokenizer

SAMPLE_BYTES = 512 << 10
APART = re.compile(r"[^\S ]'(?:s|t|re|ve|m|ll|d)")
TROUBLE = (
    "", " ", "\n\n", "\r\n\t x", "a" * 1000, "naïve 日本語 😀 \x00\x7f", "ﬁ Å Å", "مرحبا हिन्दी ไทย", "▁▁ ##x ĠĊ",
    "<|bos|> and <s> and [CLS] in a text", "1234567890 0x1F 3.14 1,000", "it's they're don't", " " * 50 + "x",
)  # fmt: skip


class Encoder:
    """Ids of texts, without special tokens: a text that holds one's name is read as plain text."""

    def __init__(self, path: str, is_fast: bool) -> None:
        self.reference: Tokenizer = load_tokenizer(path)
        self.fast = load_fast(path) if is_fast else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        if self.fast is None:
            return self._by_reference(texts)
        slow = [place for place, text in enumerate(texts) if APART.search(text)]
        if not slow:
            rows: list[list[int]] = self.fast.encode_all(texts, False)
            return rows
        chosen = set(slow)
        fast = iter(self.fast.encode_all([text for place, text in enumerate(texts) if place not in chosen], False))
        reference = iter(self._by_reference([texts[place] for place in slow]))
        return [next(reference) if place in chosen else next(fast) for place in range(len(texts))]

    def _by_reference(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.reference.encode_batch(texts, add_special_tokens=False)]


@cache
def encoder(path: str, is_fast: bool) -> Encoder:
    """Once a worker process, not once a batch."""
    return Encoder(path, is_fast)


def load_tokenizer(path: str) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    return tokenizer


def text_of(name: str) -> str:
    """The text of a token from its name in the vocabulary: byte-level (Ġ is a space), SentencePiece (▁, <0x0A>) or plain.
    Bytes that are only part of a character give U+FFFD."""
    if name == "<0x0A>":
        return "\n"
    codes = [_byte_of().get(character, -1) for character in name]
    if codes and min(codes) >= 0:
        return bytes(codes).decode(errors="replace")
    return name.replace("▁", " ")


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones of Latin-1 stand for themselves, the others are counted up from 256."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [code for code in range(256) if code not in printable]
    return {chr(code): code for code in printable} | {chr(256 + n): code for n, code in enumerate(others)}


def load_fast(path: str) -> Kitoken | None:
    """None for a tokenizer that kitoken cannot read."""
    from kitoken import Kitoken

    try:
        return Kitoken.from_file(path)
    except Exception:  # noqa: BLE001  it raises what it likes; the reference reads it
        return None


def agrees(path: str, sample: Iterable[str]) -> bool:
    """Whether the fast path gives the reference's ids on TROUBLE and on every text of `sample`."""
    both = Encoder(path, is_fast=True)
    if both.fast is None:
        return False
    texts = [*TROUBLE, *sample]
    try:
        return both.encode(texts) == both._by_reference(texts)
    except Exception:  # noqa: BLE001  a text it has no token for
        return False
