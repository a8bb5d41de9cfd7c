"""McNemar's test: do two models that answered the same items differ in accuracy?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from spark_jobs.errors import DataError

EXACT_BELOW = 25  # discordant items; from there on the chi-squared approximation is within 0.0023 where p < 0.1


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Two-sided p-value, from the items that only one of the two has right.

    Raises: DataError if the two have not as many items.
    """
    if len(ours) != len(theirs):
        raise DataError(f"{len(ours)} answers of one model and {len(theirs)} of the other: pair them by id first")
    only_ours = sum(bool(a) and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(bool(b) and not a for a, b in zip(ours, theirs, strict=True))
    return mcnemar_p(only_ours, only_theirs)


def mcnemar_p(only_ours: int, only_theirs: int) -> float:
    """Exact binomial below 25 discordant items, else chi-squared with one degree of freedom, continuity corrected.

    The correction stops at 0: |b - c| - 1 squared would make p < 1 of two equal counts (0.683 of 3 and 3).
    """
    n = only_ours + only_theirs
    if n < EXACT_BELOW:
        tail = sum(math.comb(n, k) for k in range(min(only_ours, only_theirs) + 1))
        return min(1.0, tail / 2 ** (n - 1)) if n else 1.0
    chi_squared = max(abs(only_ours - only_theirs) - 1, 0) ** 2 / n
    return math.erfc(math.sqrt(chi_squared / 2))
