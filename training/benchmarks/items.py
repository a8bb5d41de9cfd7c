"""Items of a benchmark, read and checked: every fault is told with file, line and field, before a model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spark_jobs.errors import DataError, RequestError
from training.benchmark_spec import BenchmarkSpec
from training.benchmarks.task_file import CHOICES, SplitFile, TaskFile, data_folder, read_task
from training.benchmarks.templates import Expression, Template

MAX_SLICE_VALUES = 100


@dataclass(frozen=True)
class Item:
    """prompt: its own, without examples. asked: with them. gold: number of the right choice, -1 where there are none."""

    id: str
    line: int
    prompt: str
    asked: str
    choices: tuple[str, ...] = ()
    gold: int = -1
    target: str = ""
    answers: tuple[str, ...] = ()
    slices: Mapping[str, str] = field(default_factory=dict)

    @property
    def solution(self) -> str:
        """What follows the prompt of an item that is shown as an example."""
        return self.choices[self.gold] if self.choices else self.target or next(iter(self.answers), "")


@dataclass(frozen=True)
class Benchmark:
    """A task and its items, in the order of the file."""

    spec: BenchmarkSpec
    task: TaskFile
    items: tuple[Item, ...]

    def shard(self, number: int) -> list[Item]:
        """Every `shards`-th item: shards are of one size and difficulty, and together each item once."""
        return list(self.items[number :: self.spec.shards])


def load_benchmark(spec: BenchmarkSpec) -> Benchmark:
    """Raises: RequestError, DataError naming the file, line and field at fault."""
    task = read_task(Path(spec.folder))
    folder = data_folder(spec)
    items = _Reader(task).read(folder, task.splits[task.evaluate], spec.max_items)
    shots = task.fewshot.count if task.fewshot and spec.num_fewshot is None else spec.num_fewshot or 0
    if shots:
        if task.fewshot is None:
            raise RequestError(
                f"benchmark {spec.name}: num_fewshot {shots}, but {spec.folder}/task.yaml has no fewshot; name a split there"
            )
        pool = items if task.fewshot.split == task.evaluate and not spec.max_items else _Reader(task).read(
            folder, task.splits[task.fewshot.split], 0
        )  # fmt: skip
        items = [_with_examples(item, pool, task, shots, spec.seed) for item in items]
    return Benchmark(spec, task, tuple(items))


def _with_examples(item: Item, pool: Sequence[Item], task: TaskFile, shots: int, seed: int) -> Item:
    """The draw depends on (seed, id) alone: not on how many items are asked, nor by whom."""
    assert task.fewshot is not None
    others = [other for other in pool if (other.prompt, other.solution) != (item.prompt, item.solution)]
    if len(others) < shots:
        raise RequestError(
            f"fewshot: {shots} examples of split {task.fewshot.split}, which has {len(others)} others; ask for fewer"
        )
    digest = hashlib.sha256(item.id.encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
    drawn = [others[i] for i in rng.choice(len(others), shots, replace=False)]
    shown = [f"{other.prompt}{task.delimiter}{other.solution}" for other in drawn]
    asked = task.fewshot.delimiter.join([*shown, item.prompt])
    return Item(**{name: getattr(item, name) for name in Item.__dataclass_fields__} | {"asked": asked})


class _Reader:
    """Makes items of JSON Lines by the templates of a task."""

    def __init__(self, task: TaskFile) -> None:
        self.task = task
        self.id = Expression("id", task.id) if task.id else None
        self.prompt, self.target = Template("prompt", task.prompt), Template("target", task.target)
        one = task.choices
        self.listed = Expression("choices", one) if isinstance(one, str) and one else None
        self.choices = [] if isinstance(one, str) else [Template(f"choices[{i}]", c) for i, c in enumerate(one)]
        self.gold = Expression("gold", task.gold) if task.gold else None
        self.answers = Expression("answers", task.answers) if task.answers else None
        self.slices = {name: Expression(f"slices.{name}", text) for name, text in task.slices.items()}

    def read(self, folder: Path, split: SplitFile, limit: int) -> list[Item]:
        path = folder / split.file
        columns = {name: _lines(folder / file) for name, file in split.beside.items()}
        items: list[Item] = []
        lines = [(n, line) for n, line in enumerate(_lines(path), 1) if line.strip()]
        for name, values in columns.items():
            if len(values) != len(lines):
                raise DataError(
                    f"{folder / split.beside[name]}: {len(values)} lines beside {len(lines)} items of {path}"
                )
        for place, (number, line) in enumerate(lines[:limit] if limit else lines):
            try:
                fields = _parsed(line) | {name: _plain(values[place]) for name, values in columns.items()}
                items.append(self.item(fields, number))
            except DataError as err:
                raise DataError(f"{path}, line {number}: {err}") from err
        if not items:
            raise DataError(f"{path}: no item in it; a line of JSON is an item")
        _check_together(items, path)
        return items

    def item(self, fields: dict[str, Any], number: int) -> Item:
        task = self.task
        prompt = self.prompt(fields)
        choices = self._choices(fields) if task.kind in CHOICES else ()
        told: dict[str, Any] = {}
        if task.kind in CHOICES:
            assert self.gold is not None
            told = {"choices": choices, "gold": _gold(self.gold(fields), choices)}
        elif task.kind == "generation":
            assert self.answers is not None
            told = {"answers": _texts("answers", self.answers(fields))}
        else:
            target = self.target(fields)
            if not target.strip():
                raise DataError("target: it is empty, nothing to score")
            told = {"target": target}
        slices = {name: str(value(fields)) for name, value in self.slices.items()}
        name = str(self.id(fields)) if self.id else str(number)
        return Item(name, number, prompt, prompt, slices=slices, **told)

    def _choices(self, fields: dict[str, Any]) -> tuple[str, ...]:
        found = _texts("choices", self.listed(fields)) if self.listed else tuple(c(fields) for c in self.choices)
        if len(found) < 2:
            raise DataError(f"choices: {len(found)}, wanted two or more")
        empty = [i for i, text in enumerate(found) if not text.strip()]
        if empty:
            raise DataError(f"choices[{empty[0]}]: it is empty, which has no likelihood a character")
        return found


def _lines(path: Path) -> list[str]:
    """Ended by newlines alone: a text may hold other characters that end lines."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as err:
        raise DataError(f"{path}: not UTF-8 ({err}); convert it") from err


def _parsed(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as err:
        raise DataError(f"not JSON: {err}") from err
    if not isinstance(fields, dict):
        raise DataError(f"wanted an object with fields, found {type(fields).__name__}")
    return fields


def _plain(text: str) -> Any:
    return int(text) if text.lstrip("-").isdecimal() else text


def _texts(what: str, value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        raise DataError(f"{what}: wanted a text or a list of texts, got {value!r:.60}")
    return tuple(found)


def _gold(value: Any, choices: tuple[str, ...]) -> int:
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    raise DataError(f"gold: {value!r} is neither the number of one of {len(choices)} choices, from 0, nor one of them")


def _check_together(items: Sequence[Item], path: Path) -> None:
    seen: dict[str, int] = {}
    for item in items:
        if item.id in seen:
            raise DataError(f"{path}, line {item.line}: id: {item.id!r} is also that of line {seen[item.id]}")
        seen[item.id] = item.line
    for name in items[0].slices:
        values = {item.slices[name] for item in items}
        if len(values) > MAX_SLICE_VALUES:
            raise DataError(f"{path}: slices.{name}: {len(values)} values, at most {MAX_SLICE_VALUES} make slices")
