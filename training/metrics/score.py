"""What every metric returns."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

from spark_jobs.manifests import Frozen

CONFIDENCE = 0.95  # of every interval

# JSON has no NaN and no infinity: they are written as null, which is read back as NaN.
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]


class Score(Frozen):
    """One metric on one set of items.

    value: NaN where the metric is undefined (no items, a constant to correlate with), and, for metrics without a
    worst value, where an item is invalid: a comparison with NaN is false, so such a score is never the better one.
    n: items, invalid ones included. What an item is (text, sentence, group, document) is said by the metric.
    n_invalid: items whose prediction is missing or not finite. Metrics with a worst value count them as that.
    low, high: 95 % confidence interval of `value`; NaN where it is undefined.
    signature: everything that decides the number, as `key:value|key:value`. Scores compare only under one signature.
    """

    name: str
    value: Number
    n: int
    n_invalid: int
    low: Number
    high: Number
    signature: str
