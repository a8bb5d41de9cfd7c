"""Rows with slips of the keyboard in what is read, for a score beside that of the rows as they are."""

from __future__ import annotations

from spark_jobs.errors import RequestError
from training.augment.noise import character_noise, noisy_text
from training.finetune.task import Row

UNMOVED = ("dialogue", "preference")  # what is read is whole dialogues, whose answers are also what is judged


def check_noise(kind: str, share: float) -> None:
    """Raises: RequestError where a task has no text that could be disturbed alone."""
    if share and kind in UNMOVED:
        raise RequestError(f"score.noise_share {share:g}: {kind} has no input apart from what is judged; set it to 0")


def disturbed(row: Row, share: float, seed: int) -> Row:
    """The row with `share` of the letters of its text (of its words, if it is tagged) disturbed. Spans in the text are
    kept as they are and stay in place; `pair` is not touched."""
    if row["tokens"]:
        return {
            **row,
            "tokens": [character_noise(t, share, seed, f"{row['id']}/{i}") for i, t in enumerate(row["tokens"])],
        }
    spans = [] if row["pair"] else row["spans"] or []  # those of a pair are answers in the pair
    text, ranges = noisy_text(row["text"], share, seed, row["id"], [(s["start"], s["end"]) for s in spans])
    moved = [span | {"start": start, "end": end} for span, (start, end) in zip(spans, ranges, strict=True)]
    return {**row, "text": text, "spans": moved if spans else row["spans"]}
