"""What each method may change in a row of each task so that its label stays true, and where nothing may be changed.

Where a method is not listed for a task it is refused: docs/augmentation.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from spark_jobs.errors import RequestError

Row = Mapping[str, Any]  # a row of a labelled set by column, see spark_jobs.manifests.LabelledSet

BOTH = ("text", "pair")
TEXT = ("text",)
# `tokens`: words with tag O. `messages`: what users say.
CHANGED: dict[str, dict[str, tuple[str, ...]]] = {
    "classification": {
        "synonyms": BOTH,
        "character_noise": BOTH,
        "word_noise": BOTH,
        "back_translation": BOTH,
        "mixing": TEXT,
    },
    "multi_label": {
        "synonyms": BOTH,
        "character_noise": BOTH,
        "word_noise": BOTH,
        "back_translation": BOTH,
        "mixing": TEXT,
    },
    "tagging": {"synonyms": ("tokens",), "character_noise": ("tokens",), "word_noise": ("tokens",)},
    "relation": {"synonyms": TEXT, "character_noise": TEXT, "word_noise": TEXT},
    "question_answering": {"synonyms": BOTH, "character_noise": BOTH, "back_translation": TEXT},
    "translation": {"character_noise": TEXT},
    "summarization": {"synonyms": TEXT, "character_noise": TEXT, "word_noise": TEXT, "back_translation": TEXT},
    "dialogue": {"character_noise": ("messages",)},
    "similarity": {"synonyms": BOTH, "character_noise": BOTH, "back_translation": BOTH},
    "regression": {"synonyms": BOTH, "character_noise": BOTH, "back_translation": BOTH},
    "preference": {"character_noise": ("text", "messages")},
    "ranking": {"synonyms": TEXT, "character_noise": TEXT, "back_translation": TEXT},
}
SPANS_OF = {"relation": "text", "question_answering": "pair"}
# Rows whose changes must agree, because they share an input: candidates of one query.
SHARED_KEY = {"ranking": "group"}


def changed_columns(task: str, kind: str) -> tuple[str, ...]:
    """Raises: RequestError if the method cannot keep the labels of the task."""
    methods = CHANGED.get(task)
    if methods is None:
        raise RequestError(f"task {task!r} is not one of {', '.join(sorted(CHANGED))}: nothing known to augment")
    if kind not in methods:
        raise RequestError(
            f"method {kind} cannot keep the labels of task {task}: leave it out of augment.methods; "
            f"{task} takes {', '.join(methods)}"
        )
    return methods[kind]


def protected(row: Row, task: str, column: str) -> list[tuple[int, int]]:
    """Characters of the column that a label points at: arguments of a relation, answers to a question."""
    if SPANS_OF.get(task) != column:
        return []
    return [(span["start"], span["end"]) for span in row["spans"] or ()]


def key_of(row: Row, task: str) -> str:
    """What draws for the row are made by: its id, or what it shares with rows that must change alike."""
    column = SHARED_KEY.get(task)
    return str((row[column] if column else None) or row["id"])


def classes_of(row: Row) -> set[str]:
    """Labels of the row; of a tagged one, the types of its names."""
    return {*(row["labels"] or ()), *(tag[2:] for tag in row["tags"] or () if tag != "O")}


def check_labels(only: Iterable[str], label_set: Iterable[str], kind: str) -> None:
    """Raises: RequestError if a method is asked for labels that the set does not have."""
    unknown = sorted(set(only) - set(label_set))
    if unknown:
        raise RequestError(
            f"augment method {kind}: only_labels {unknown} are not labels of this set; it has {sorted(label_set)[:20]}"
        )
