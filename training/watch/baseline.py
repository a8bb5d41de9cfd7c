"""What a window is compared with: the training snapshot, or earlier traffic in the same bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from training.watch.bins import NUM_BUCKETS
from training.watch.distances import Numbers
from training.watch.prompt_perplexity import typical_length
from training.watch.reference import ReferenceCounts, Texts
from training.watch.sketch import TrafficLine

CUT_SALT = 4


@dataclass(frozen=True)
class Baseline:
    """Counts as in a line of traffic. buckets: token buckets of drawn documents, one array each; lines: of earlier traffic;
    one of the two is empty. nats: of held-out documents, by token."""

    languages: dict[str, int]
    prompt_bytes: Sequence[float]
    prompt_tokens: Sequence[float]
    finish: dict[str, int]
    repetition: float
    repetition_shares: Sequence[int]
    answer_tokens: Sequence[float] = ()
    special_buckets: tuple[int, ...] = ()
    nats: list[NDArray[np.float32]] = field(default_factory=list)
    buckets: list[NDArray[np.uint8]] = field(default_factory=list)
    lines: list[TrafficLine] = field(default_factory=list)

    def token_units(self, window: TrafficLine) -> tuple[Numbers, int]:
        """Counts of token buckets (U, 256), a row a unit, and how many units make up the window."""
        if self.buckets:
            return cut_documents(self.buckets, window.prompt_tokens), sum(window.prompt_tokens)
        units = np.array([line.token_buckets for line in self.lines], np.float64).reshape(-1, NUM_BUCKETS)
        per_unit = max(sum(sum(line.prompt_tokens) for line in self.lines) / max(len(self.lines), 1), 1e-9)
        return units, max(1, round(sum(window.prompt_tokens) / per_unit))


def training_baseline(counts: ReferenceCounts, texts: Texts) -> Baseline:
    """Lengths of answers are not those of the snapshot: there a step chose the limit, here each client does."""
    return Baseline(
        languages=counts.languages,
        prompt_bytes=counts.prompt_bytes,
        prompt_tokens=counts.prompt_tokens,
        finish=counts.finish,
        repetition=counts.repetition,
        repetition_shares=counts.repetition_shares,
        special_buckets=counts.special_buckets,
        nats=texts.nats,
        buckets=texts.buckets,
    )


def traffic_baseline(
    prompts: Sequence[TrafficLine], answers: TrafficLine | None, snapshot: Baseline, whole: TrafficLine | None
) -> Baseline:
    """Earlier traffic. prompts: its lines, of any model; whole: their sum; answers: the sum of those of the champion alone."""
    return Baseline(
        languages=whole.languages if whole else {},
        prompt_bytes=whole.prompt_bytes if whole else (),
        prompt_tokens=whole.prompt_tokens if whole else (),
        finish={str(k): n for k, n in answers.finish.items()} if answers else {},
        repetition=answers.repetition if answers else 0.0,
        repetition_shares=answers.repetition_shares if answers else (),
        answer_tokens=answers.answer_tokens if answers else (),
        special_buckets=snapshot.special_buckets,
        nats=snapshot.nats,
        lines=[line for line in prompts if sum(line.prompt_tokens)],
    )


def cut_documents(buckets: Sequence[NDArray[np.uint8]], lengths: Sequence[float]) -> Numbers:
    """Documents cut to as many tokens as prompts have: each gets one of the window's lengths, in a seeded order.

    What is left of a document is its beginning; one that is shorter stays whole.
    """
    counts = np.asarray(lengths, np.float64)
    places = (np.arange(len(buckets)) + 0.5) / len(buckets) * counts.sum()
    wanted = np.searchsorted(np.cumsum(counts), places, side="right")
    order = np.random.default_rng(CUT_SALT).permutation(len(buckets))
    units = np.zeros((len(buckets), NUM_BUCKETS))
    for place, number in zip(order, wanted, strict=True):
        units[place] = np.bincount(buckets[place][: typical_length(int(number))], minlength=NUM_BUCKETS)
    return units
