"""How two marked arguments of a text are related: a directed label such as Cause-Effect(e1,e2).

The arguments are marked in the text itself, e1 between two `$` and e2 between two `#`, as R-BERT does
(arXiv:1905.08284): "the $ mill $ turns # rye #". Every vocabulary has learned these characters, so nothing is added to it:
a LoRA that leaves embeddings alone can use the marks, and the tokenizer's files stay as they are. New special tokens
would begin at random, in a table that such methods do not train.

A text longer than `max_length` keeps the tokens nearest to its arguments, on both sides and between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from spark_jobs.errors import DataError
from training.finetune.classification import Classification
from training.finetune.task import Example, Prediction, Row, Unusable
from training.finetune_spec import TaskSpec
from training.metrics.bootstrap import Bootstrap
from training.metrics.classification import classification_scores
from training.metrics.f1 import count_findings, f1
from training.metrics.score import Score

MARKS = {"e1": "$", "e2": "#"}
DIRECTION = re.compile(r"\((e1,e2|e2,e1)\)$")
NO_RELATION = ("Other", "no_relation")  # in SemEval-2010 task 8; in TACRED


class Span(NamedTuple):
    """Characters, end not included."""

    start: int
    end: int


class Relation(Classification):
    """labels: one relation; spans: the arguments in text, labelled e1 and e2. Loss: cross entropy."""

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, label_set: Sequence[str]) -> None:
        super().__init__(spec, tokenizer, label_set)
        check_marks(tokenizer)

    def encode(self, row: Row) -> list[Example]:
        text = row["text"] or ""
        if not text.strip():
            raise Unusable("empty_text")
        marked, arguments = mark(text, arguments_of(row))
        features = self.encode_marked(marked, arguments)
        return [Example(row["id"], features | self.target_of(row), len(features["input_ids"]))]

    def encode_marked(self, marked: str, arguments: Sequence[Span]) -> dict[str, Any]:
        """Tokens, at most max_length. Raises: Unusable if the arguments alone are more."""
        encoded = self.tokenizer(
            marked, return_offsets_mapping=True, return_special_tokens_mask=True, return_attention_mask=False
        )
        inside = [
            any(start < span.end and end > span.start for span in arguments) for start, end in encoded["offset_mapping"]
        ]
        kept = nearest(inside, encoded["special_tokens_mask"], self.spec.max_length)
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        return {name: [encoded[name][place] for place in kept] for name in names}

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        gold = [row["labels"][0] for row in rows]
        found = [next((p["label"] for p in predictions[row["id"]]), None) for row in rows]
        bootstrap = Bootstrap(seed=seed)
        return {"directed_macro_f1": directed_macro_f1(gold, found, bootstrap)} | classification_scores(
            gold, found, bootstrap
        )


def check_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises: DataError if the vocabulary cannot tell the marks apart: then no direction could be learned."""
    read = {name: tokenizer(sign, add_special_tokens=False)["input_ids"] for name, sign in MARKS.items()}
    unknown = [MARKS[name] for name, ids in read.items() if not ids or tokenizer.unk_token_id in ids]
    if unknown or read["e1"] == read["e2"]:
        raise DataError(
            f"task.kind relation marks arguments by {' and '.join(MARKS.values())}; this tokenizer does not know "
            f"{' and '.join(unknown or MARKS.values())}: choose a base whose vocabulary has them"
        )


def arguments_of(row: Row) -> tuple[Span, Span]:
    """e1 and e2. Raises: Unusable unless each is there once, inside the text."""
    found = [(span["label"], Span(span["start"], span["end"])) for span in row["spans"] or []]
    inside = all(0 <= span.start < span.end <= len(row["text"]) for _, span in found)
    if sorted(name for name, _ in found) != list(MARKS) or not inside:
        raise Unusable("bad_spans")
    arguments = dict(found)
    return arguments["e1"], arguments["e2"]


def mark(text: str, arguments: tuple[Span, Span]) -> tuple[str, tuple[Span, Span]]:
    """Text with the marks, and where the arguments with their marks now are. One may lie in the other, or cross it."""
    signs = list(MARKS.values())
    edges = []  # (place, closing before opening, inner before outer when closing and after it when opening, ...)
    for number, (start, end) in enumerate(arguments):
        edges.append((start, 1, start - end, number, number))
        edges.append((end, 0, end - start, -number, number))
    pieces, done, length = [], 0, 0
    places: dict[tuple[int, int], int] = {}
    for place, opens, _, _, number in sorted(edges):
        piece = f"{signs[number]} " if opens else f" {signs[number]}"
        length += place - done + len(piece)
        pieces += [text[done:place], piece]
        places[number, opens] = length - len(piece) if opens else length
        done = place
    marked = "".join([*pieces, text[done:]])
    return marked, (Span(places[0, 1], places[0, 0]), Span(places[1, 1], places[1, 0]))


def nearest(inside: Sequence[bool], special: Sequence[int], max_length: int) -> list[int]:
    """Places of the tokens that are kept, ascending: special ones, arguments, then the rest by distance from an argument.

    Raises: Unusable if the first two are more than `max_length`.
    """
    far = len(inside)
    distances = [0 if argument else far for argument in inside]
    for order in (range(1, far), range(far - 2, -1, -1)):
        step = order.step
        for place in order:
            distances[place] = min(distances[place], distances[place - step] + 1)
    ranks = sorted(range(far), key=lambda place: (not special[place], distances[place], place))
    kept = sorted(ranks[:max_length])
    if sum(inside) != sum(inside[place] for place in kept):
        raise Unusable("entity_lost")
    return kept


def directed_macro_f1(gold: Sequence[str], predicted: Sequence[str | None], bootstrap: Bootstrap) -> Score:
    """The official score of SemEval-2010 task 8: F1 of each relation, averaged over relations but `Other`.

    A relation's two directions are counted together, but only the right direction is right: the wrong one is a miss and
    a false find. No prediction is one of no relation. Source: README of the task's scorer 1.2, scoring (iii).
    """
    counts = count_findings(
        [frozenset({label}) - frozenset(NO_RELATION) for label in gold],
        [None if label is None else frozenset({label}) - frozenset(NO_RELATION) for label in predicted],
        lambda label: DIRECTION.sub("", label),
        bootstrap,
    )
    return f1(counts, "macro", "directed_macro_f1")
