"""What a benchmark asks of a model, and what it is answered. Nothing here knows tasks or models.

Log-likelihoods are natural logarithms, sums over tokens. `flags` of an answer say what had to be done to ask at all:

    boundary    a token spans context and continuation, so the continuation was encoded alone
    truncated   the context was cut from the left to fit the model; the continuation never is
    too_long    the continuation alone does not fit the model: not asked, not finite
    non_finite  a probability of the answer was no number
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Flag = Literal["boundary", "truncated", "too_long", "non_finite"]
FLAGS: tuple[Flag, ...] = ("boundary", "truncated", "too_long", "non_finite")


@dataclass(frozen=True)
class Continuation:
    """log p(continuation | context). A space between words belongs to the continuation."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Rolling:
    """log p(text), each token given as much before it as fits the model."""

    text: str


@dataclass(frozen=True)
class Generation:
    """What is written greedily after `context`, up to the first of the `until` texts, the end token, or max_new_tokens."""

    context: str
    until: tuple[str, ...] = ()
    max_new_tokens: int = 64


Request = Continuation | Rolling | Generation


@dataclass(frozen=True)
class Likelihood:
    """Of a Continuation or a Rolling. greedy: each token is the likeliest at its place (False for a Rolling, not looked at)."""

    log_likelihood: float
    num_tokens: int
    greedy: bool = False
    flags: tuple[Flag, ...] = ()

    @property
    def finite(self) -> bool:
        return math.isfinite(self.log_likelihood)


@dataclass(frozen=True)
class Written:
    """Of a Generation. text: None where a logit was not finite. finish: what ended it."""

    text: str | None
    num_tokens: int
    finish: Literal["stop", "length"]
    flags: tuple[Flag, ...] = ()

    @property
    def finite(self) -> bool:
        return self.text is not None


Answer = Likelihood | Written
