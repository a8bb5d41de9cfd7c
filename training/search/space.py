"""Points of a search space: every one of a grid, or the one that a seed and a trial's number draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from pydantic import JsonValue

from training.search_spec import ParameterSpec, Values

DRAW_SALT = 11  # the draws of a search are not those of anything else made from the seed
DIGITS = 4  # significant digits of a drawn number: enough for any rate, and short enough to be typed again


def grid(space: Sequence[ParameterSpec]) -> list[Values]:
    """Every combination; the last parameter changes fastest."""
    columns = [grid_values(parameter) for parameter in space]
    return [dict(zip((p.path for p in space), row, strict=True)) for row in itertools.product(*columns)]


def grid_values(parameter: ParameterSpec) -> list[JsonValue]:
    """Its choices, or num_points evenly from low to high; whole numbers that coincide only once."""
    if parameter.choices:
        return list(parameter.choices)
    shares = [i / (parameter.num_points - 1) for i in range(parameter.num_points)]
    return list(dict.fromkeys(number_at(parameter, share) for share in shares))


def drawn(space: Sequence[ParameterSpec], seed: int, number: int) -> Values:
    """The point of trial `number`: it depends on nothing else, so more trials are the same ones and some more."""
    random = np.random.default_rng([DRAW_SALT, seed, number])
    return {parameter.path: _drawn(parameter, float(random.random())) for parameter in space}


def _drawn(parameter: ParameterSpec, share: float) -> JsonValue:
    if parameter.choices:
        return parameter.choices[int(share * len(parameter.choices))]
    if not parameter.whole:
        return number_at(parameter, share)
    assert isinstance(parameter.low, int)
    assert isinstance(parameter.high, int)
    if not parameter.log:
        return parameter.low + int(share * (parameter.high - parameter.low + 1))
    low, high = math.log(parameter.low - 0.5), math.log(parameter.high + 0.5)
    return min(max(round(math.exp(low + share * (high - low))), parameter.low), parameter.high)


def number_at(parameter: ParameterSpec, share: float) -> float:
    """The number at a share (0 to 1) of the range's length."""
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.log:
        value = math.exp(math.log(parameter.low) + share * (math.log(parameter.high) - math.log(parameter.low)))
    else:
        value = parameter.low + share * (parameter.high - parameter.low)
    return tidy(parameter, value)


def tidy(parameter: ParameterSpec, value: float) -> float:
    """Rounded to DIGITS significant digits, or to a whole number, and inside the range."""
    assert parameter.low is not None
    assert parameter.high is not None
    rounded = round(value) if parameter.whole else float(f"{value:.{DIGITS}g}")
    return min(max(rounded, parameter.low), parameter.high)
