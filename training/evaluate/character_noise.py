"""Rows as somebody in a hurry would have typed them: what robustness to character noise is measured on.

The slips are those of training/augment/noise.py, in the same words that augmentation may change, so a row keeps its label,
its answers and its tags. They depend on (seed, id) only: two models are given the same slips.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from training.augment.allowed import Row
from training.augment.change_words import change_rows
from training.augment.made import Made
from training.augment.noise import character_change
from training.augment_spec import CharacterNoiseSpec


def noisy_rows(rows: Iterable[Row], task: str, share: float, seed: int) -> Iterator[Row]:
    """Each row once, in order, under its own id, with something done to `share` of its letters on average."""
    spec, change = CharacterNoiseSpec(strength=share), character_change(share)
    for row in rows:
        result = next(change_rows(iter([row]), task, spec, seed, change))
        kept = {name: row[name] for name in ("id", "group", "made_by", "made_from")}
        yield {**result.row, **kept} if isinstance(result, Made) else row
