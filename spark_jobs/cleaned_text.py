"""The text of a document after cleaning, before any rule is asked. The quality classifier learns from such texts too."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs import mojibake, pii, quality_rules, text_rules
from spark_jobs.specs import CleanSpec


class Cleaned(NamedTuple):
    texts: pa.Array
    repaired: pa.Array  # after the repair of mojibake alone
    masked: dict[str, NDArray[np.int64]]  # kind of personal data -> replacements in each text


def clean_texts(raw: pa.Array, spec: CleanSpec) -> Cleaned:
    """Repair, normalise, drop C4's lines, mask personal data. No nulls in `raw`."""
    repaired = mojibake.repair(raw) if spec.fix_mojibake else raw
    texts, masked = pii.mask(quality_rules.strip_lines(text_rules.normalise(repaired), spec), spec.mask_pii)
    return Cleaned(texts, repaired, masked)
