"""An item as requests, and the answers to them as one row of the item table."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.benchmarks.items import Item
from training.benchmarks.requests import (
    FLAGS,
    Answer,
    Continuation,
    Flag,
    Generation,
    Likelihood,
    Request,
    Rolling,
    Written,
)
from training.benchmarks.task_file import CHOICES, FilterSpec, TaskFile
from training.metrics.choices import LENGTHS


@dataclass(frozen=True)
class Row:
    """An item and what the model made of it. unconditional: likelihoods of the choices without the question, () where not
    asked. prediction: None where an answer is not finite."""

    item: Item
    prediction: str | None
    chosen: int = -1
    right: bool | None = None
    log_likelihoods: tuple[float, ...] = ()
    unconditional: tuple[float, ...] = ()
    num_tokens: int = 0
    tied: bool = False
    flags: tuple[Flag, ...] = ()
    written: str | None = field(default=None)

    @property
    def finite(self) -> bool:
        return self.prediction is not None

    @property
    def nats(self) -> float:
        """Of the target, or the text; NaN where it is not one text that is scored."""
        return -self.log_likelihoods[0] if len(self.log_likelihoods) == 1 else math.nan


def requests_of(task: TaskFile, item: Item) -> list[Request]:
    """In a fixed order: choices, then the same without the question."""
    if task.kind in CHOICES:
        asked: list[Request] = [Continuation(item.asked, task.delimiter + choice) for choice in item.choices]
        if "accuracy_pmi" in task.chosen_metrics:
            asked += [Continuation(task.unconditional, task.delimiter + choice) for choice in item.choices]
        return asked
    if task.kind == "continuation":
        return [Continuation(item.asked, task.delimiter + item.target)]
    if task.kind == "generation":
        return [Generation(item.asked, task.until, task.max_new_tokens)]
    return [Rolling(item.target)]


def judge(task: TaskFile, item: Item, answers: Sequence[Answer]) -> Row:
    flags = tuple(flag for flag in FLAGS if any(flag in answer.flags for answer in answers))
    tokens = sum(answer.num_tokens for answer in answers)
    first = answers[0]
    if isinstance(first, Written):
        text = None if first.text is None else filtered(first.text, task.filters)
        return Row(item, text, num_tokens=tokens, flags=flags, written=first.text)
    values = tuple(a.log_likelihood for a in answers if isinstance(a, Likelihood))
    if task.kind in CHOICES:
        return _choice(task, item, values, tokens, flags)
    told = None if not first.finite else item.target if first.greedy else ""
    right = first.greedy and first.finite if task.kind == "continuation" else None
    return Row(item, told, right=right, log_likelihoods=values, num_tokens=tokens, flags=flags)


def _choice(task: TaskFile, item: Item, values: tuple[float, ...], tokens: int, flags: tuple[Flag, ...]) -> Row:
    """By the main metric's rule. The first of equal choices is taken, and the tie is noted."""
    count = len(item.choices)
    conditional, unconditional = values[:count], values[count:]
    if not all(map(math.isfinite, values)):
        return Row(item, None, -1, False, conditional, unconditional, tokens, False, flags)
    points = choice_points(task.chosen_metrics[0], conditional, unconditional, item.choices)
    chosen = int(np.argmax(points))
    tied = points.count(points[chosen]) > 1
    return Row(item, item.choices[chosen], chosen, chosen == item.gold, conditional, unconditional, tokens, tied, flags)


def choice_points(
    metric: str, conditional: Sequence[float], unconditional: Sequence[float], choices: Sequence[str]
) -> list[float]:
    """What the choice with the most of is taken by a metric; accuracy's rule where a metric has none of its own."""
    if metric == "accuracy_pmi":
        return [given - alone for given, alone in zip(conditional, unconditional, strict=True)]
    length = LENGTHS.get(metric, LENGTHS["accuracy"])
    return [value / length(text) for value, text in zip(conditional, choices, strict=True)]


def filtered(text: str, filters: Sequence[FilterSpec]) -> str:
    for one in filters:
        text = FILTERS[one.kind](text, one)
    return text


def _found(text: str, spec: FilterSpec) -> str:
    matches = list(re.finditer(spec.pattern, text))
    if not matches:
        return ""
    match = matches[0 if spec.take == "first" else -1]
    return next((group for group in match.groups() if group is not None), match.group(0))


FILTERS: dict[str, Callable[[str, FilterSpec], str]] = {
    "strip": lambda text, _: text.strip(),
    "lower": lambda text, _: text.lower(),
    "first_line": lambda text, _: text.lstrip("\n").split("\n")[0],
    "regex": _found,
    "remove": lambda text, spec: re.sub(spec.pattern, "", text),
}
