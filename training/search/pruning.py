"""Whether a trial goes on, from its score and those of all that came as far. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

from training.search_spec import PruningSpec


def reason_to_stop(
    pruning: PruningSpec, direction: Literal["maximize", "minimize"], score: float, seen: Sequence[float]
) -> str:
    """Empty if the trial goes on. seen: scores at the same stage, its own among them. Equal scores fare alike."""
    if pruning.kind == "none" or len(seen) < pruning.min_trials:
        return ""
    sign = 1 if direction == "maximize" else -1
    if pruning.kind == "median":
        middle = median(seen)
        return "" if sign * score >= sign * middle else f"{score:.4f} is worse than the median {middle:.4f}"
    better = sum(sign * other > sign * score for other in seen)
    kept = max(1, len(seen) // pruning.reduction)
    return "" if better < kept else f"{score:.4f} is number {better + 1} of {len(seen)}, the best {kept} go on"
