"""Predictions beside what was wanted."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from spark_jobs.errors import DataError


def check_paired(**columns: Sized) -> None:
    """Raises: DataError unless all columns have as many items; names them with their lengths."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise DataError(f"{told}: a metric wants one of each for every item, in the same order")


def check_texts(references: Sequence[Sequence[str]]) -> None:
    """Raises: DataError if the references of an item are one text: as a list it would be its characters."""
    for item, texts in enumerate(references):
        if isinstance(texts, str):
            raise DataError(
                f"references of item {item} are the text {texts[:40]!r}: wanted a list of texts for each item"
            )
