"""Random draws that depend on what is drawn for and on nothing else: not on order, batch or process.

Only `random()` is used of Python's generator: it alone is promised to stay the same between versions.
"""

from __future__ import annotations

import hashlib
import random


def number(*names: object) -> int:
    """64 bits of a hash of the names, e.g. (seed, method, row id, copy)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


class Draws:
    """A stream of draws for one row: `Draws(seed, method, row id, copy)`."""

    def __init__(self, *names: object) -> None:
        self._random = random.Random(number(*names))

    def happens(self, share: float) -> bool:
        return self._random.random() < share

    def below(self, end: int) -> int:
        """Uniform in [0, end)."""
        return int(self._random.random() * end)


def chosen(share: float, *names: object) -> bool:
    """Whether a row is of the `share` that a method works on."""
    return number(*names) < share * 2**64
