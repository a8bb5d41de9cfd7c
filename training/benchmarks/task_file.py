"""task.yaml of a benchmark: where its items lie and how each becomes requests and scores. Imports nothing heavy.

Fields of an item are reached by Jinja: `prompt`, `target` and each of `choices` are templates ("Question: {{ goal }}"),
`id`, `gold`, `answers`, values of `slices` and a `choices` that is one text are expressions ("choices.text").
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from spark_jobs.errors import RequestError
from spark_jobs.manifests import Frozen
from training.benchmark_spec import BenchmarkSpec

TASK_FILE = "task.yaml"
Kind = Literal["multiple_choice", "classification_by_likelihood", "continuation", "generation", "rolling_text"]

CHOICES = ("multiple_choice", "classification_by_likelihood")
WANTED: dict[str, tuple[str, ...]] = {  # fields of a task that its kind needs
    "multiple_choice": ("prompt", "choices", "gold"),
    "classification_by_likelihood": ("prompt", "choices", "gold"),
    "continuation": ("prompt", "target"),
    "generation": ("prompt", "answers"),
    "rolling_text": ("target",),
}
METRICS: dict[str, tuple[str, ...]] = {  # of each kind; the first is the main one unless the task says otherwise
    "multiple_choice": ("accuracy", "accuracy_norm", "accuracy_bytes", "brier", "ece", "accuracy_pmi"),
    "classification_by_likelihood": (
        "accuracy", "macro_f1", "micro_f1", "weighted_f1", "matthews", "brier", "ece",
    ),
    "continuation": ("accuracy", "perplexity", "item_perplexity", "bits_per_byte"),
    "generation": ("exact_match", "token_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL"),
    "rolling_text": ("bits_per_byte", "perplexity", "byte_perplexity", "word_perplexity"),
}  # fmt: skip
ON_REQUEST = ("accuracy_pmi", "bleu", "chrf", "rouge1", "rouge2", "rougeL")  # computed only where `metrics` names them
LESS_IS_BETTER = (
    "brier",
    "ece",
    "perplexity",
    "item_perplexity",
    "byte_perplexity",
    "word_perplexity",
    "bits_per_byte",
)


class SplitFile(Frozen):
    """file: JSON Lines, in the data folder. beside: field -> file whose n-th line is that field of the n-th item."""

    file: str
    beside: dict[str, str] = Field(default_factory=dict)


class FewshotSpec(Frozen):
    """count items of `split`, drawn for each item by its id, none the item itself, before it in the prompt."""

    split: str
    count: int = Field(ge=1, le=64)
    delimiter: str = "\n\n"


class FilterSpec(Frozen):
    """regex: what `pattern` finds (its first group that took part, if it has groups), the first or the last time, nothing if
    nowhere. remove: all that `pattern` finds is taken out."""

    kind: Literal["strip", "lower", "first_line", "regex", "remove"]
    pattern: str = ""
    take: Literal["first", "last"] = "first"

    @model_validator(mode="after")
    def pattern_where_it_is_used(self) -> Self:
        if (self.kind in ("regex", "remove")) != bool(self.pattern):
            raise ValueError(f"filter {self.kind}: a pattern is wanted for regex and remove, and for no other")
        try:
            re.compile(self.pattern)
        except re.error as err:
            raise ValueError(f"filter {self.kind}: {self.pattern!r} is no regular expression: {err}") from err
        return self


class TaskFile(Frozen):
    """The whole of task.yaml."""

    version: int = Field(ge=1, description="Raised whenever scores would change; scores compare under one version.")
    kind: Kind
    splits: dict[str, SplitFile] = Field(min_length=1, description="Name -> file, or {file, beside}.")
    evaluate: str = "test"
    id: str = Field("", description="Expression; empty: the number of the item's line.")
    prompt: str = ""
    choices: str | tuple[str, ...] = ""
    gold: str = Field("", description="Expression: the number of the right choice, from 0, or its text.")
    target: str = Field(
        "", description="Template. continuation: what is scored after the prompt. rolling_text: the text."
    )
    answers: str = Field("", description="Expression: a text or a list of texts, any of which is right.")
    delimiter: str = Field(" ", description="Between prompt and choice or target; part of what is scored.")
    unconditional: str = Field("Answer:", description="Prompt without the question, of accuracy_pmi.")
    fewshot: FewshotSpec | None = None
    until: tuple[str, ...] = ("\n",)
    max_new_tokens: int = Field(64, ge=1, le=8192)
    filters: tuple[FilterSpec, ...] = ()
    normalization: Literal["squad", "unicode"] = "unicode"
    language: str = "en"
    metrics: tuple[str, ...] = Field((), description="The first is the main one; empty: those of the kind.")
    slices: dict[str, str] = Field(default_factory=dict, description="Name -> expression, whose values are told apart.")

    @field_validator("splits", mode="before")
    @classmethod
    def files_by_name(cls, told: Any) -> Any:
        if not isinstance(told, dict):
            return told
        return {name: {"file": file} if isinstance(file, str) else file for name, file in told.items()}

    @field_validator("gold", mode="before")
    @classmethod
    def number_is_an_expression(cls, told: Any) -> Any:
        return str(told) if isinstance(told, int) else told

    @model_validator(mode="after")
    def kind_has_what_it_needs(self) -> Self:
        missing = [name for name in WANTED[self.kind] if not getattr(self, name)]
        if missing:
            raise ValueError(f"kind {self.kind} wants {', '.join(WANTED[self.kind])}; {missing[0]} is missing")
        unknown = [name for name in self.metrics if name not in METRICS[self.kind]]
        if unknown:
            raise ValueError(f"metrics: {self.kind} has no {unknown[0]}; it has {', '.join(METRICS[self.kind])}")
        wanted = [self.evaluate, *([self.fewshot.split] if self.fewshot else [])]
        lost = [name for name in wanted if name not in self.splits]
        if lost:
            raise ValueError(f"split {lost[0]!r} is none of splits: {', '.join(self.splits)}")
        if self.fewshot and self.kind == "rolling_text":
            raise ValueError("fewshot: a rolling_text has no prompt to put examples into")
        return self

    @property
    def chosen_metrics(self) -> tuple[str, ...]:
        return self.metrics or tuple(name for name in METRICS[self.kind] if name not in ON_REQUEST)


def read_task(folder: Path) -> TaskFile:
    """Raises: RequestError naming the file, the line and the field that is wrong."""
    path = folder / TASK_FILE
    if not path.is_file():
        raise RequestError(f"{path}: no such file; a benchmark is a folder with {TASK_FILE} (docs/evaluation.md)")
    text = path.read_text()
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise RequestError(f"{path}: not YAML: {err}") from err
    try:
        return TaskFile.model_validate(tree)
    except ValidationError as err:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raise RequestError("\n".join(_explained(path, root, problem) for problem in err.errors())) from err


def _explained(path: Path, root: yaml.Node | None, problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "task"
    told = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        told = f"no such field; known: {', '.join(TaskFile.model_fields)}"
    return f"{path}, line {_line(root, problem['loc'])}: {where}: {told}"


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Of the innermost part of `location` that is in the file."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def data_folder(spec: BenchmarkSpec) -> Path:
    return Path(spec.data or spec.folder)


def files_of(spec: BenchmarkSpec) -> list[Path]:
    """task.yaml and the files of the splits it uses. Raises: RequestError if one is not there."""
    task = read_task(Path(spec.folder))
    used = {task.evaluate} | ({task.fewshot.split} if task.fewshot and spec.num_fewshot != 0 else set())
    splits = [task.splits[name] for name in sorted(used)]
    named = [data_folder(spec) / name for split in splits for name in (split.file, *split.beside.values())]
    for path in named:
        if not path.is_file():
            raise RequestError(
                f"benchmark {spec.name}: {path} is not there; set its data to the folder that holds {path.name}"
            )
    return [Path(spec.folder) / TASK_FILE, *named]
