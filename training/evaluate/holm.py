"""Several tests at once: p-values adjusted so that a false finding among them all is as rare as one was in one."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979), in the order given: reject where one is at most alpha.

    The k-th smallest of m is multiplied by m - k + 1, and none may fall below one before it. Holds however the tests depend
    on each other.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
