"""Repair of texts that were decoded with the wrong encoding: "schÃ¶n" for "schön". No Spark.

ftfy (Speer 2019, doi:10.5281/zenodo.2591652) undoes it, and only where its model of badness is sure. It reads some MB a
second, so only texts with one of its tell-tale pairs are handed to it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# A lead byte of UTF-8 as Latin-1, Windows-1252 or Windows-1250 shows it (C2-F4), followed by what shows a continuation byte
# (80-BF); the same in Windows-1251, where UTF-8 Cyrillic becomes pairs of Р or С and a symbol.
SUSPICIOUS = (
    "[\u00c2-\u00f4\u0102\u0103\u0139\u0111][\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018-\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178\u0164\u0179]"
    "|[\u0420\u0421][\u00a0-\u00bf\u0402-\u040f\u0452-\u045f\u201a-\u201e\u2020\u2021\u20ac\u2030\u2116]"
)


def repair(texts: pa.Array) -> pa.Array:
    """No nulls in `texts`. A text that ftfy finds nothing in stays byte for byte as it is."""
    suspicious = pc.match_substring_regex(texts, SUSPICIOUS)
    if not np.any(suspicious.to_numpy(zero_copy_only=False)):
        return texts
    import ftfy

    repaired = [ftfy.fix_encoding(text) for text in texts.filter(suspicious).to_pylist()]
    return pc.replace_with_mask(texts, suspicious, pa.array(repaired, texts.type))
