"""Labelled sets: which task, where the examples come from, how they are split, and what is checked. Formats: docs/labelled.md."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from spark_jobs.manifests import Frozen

TaskKind = Literal[
    "classification", "multi_label", "tagging", "relation", "question_answering", "translation", "summarization",
    "dialogue", "similarity", "regression", "preference", "ranking",
]  # fmt: skip
SourceKind = Literal[
    "jsonl", "csv", "parquet", "orc", "lines", "conll", "squad", "semeval-relations", "dialogues", "package-topics"
]
Split = Literal["train", "validation", "test"]

MAPPED = ("jsonl", "csv", "parquet", "orc")  # kinds whose columns are named by `columns`
# What a row must have; a preference also has a prompt, `text` or `messages`.
REQUIRED: dict[str, tuple[str, ...]] = {
    "classification": ("text", "labels"),
    "multi_label": ("text", "labels"),
    "tagging": ("tokens", "tags"),
    "relation": ("text", "labels", "spans"),
    "question_answering": ("text", "pair", "spans"),
    "translation": ("text", "target"),
    "summarization": ("text", "target"),
    "dialogue": ("messages",),
    "similarity": ("text", "pair", "value"),
    "regression": ("text", "value"),
    "preference": ("chosen", "rejected"),
    "ranking": ("text", "pair", "value"),
}
GIVES: dict[str, tuple[str, ...]] = {  # the tasks that a kind without `columns` has examples for
    "lines": ("classification",),
    "conll": ("tagging",),
    "squad": ("question_answering", "translation"),
    "semeval-relations": ("relation",),
    "dialogues": ("dialogue",),
    "package-topics": ("multi_label", "summarization"),
}


class ColumnNames(Frozen):
    """Columns of a table, or keys of a line of JSON, by what they hold. Empty: the source has none of it."""

    text: str = Field("", description="First input: sentence, document, question, source sentence, prompt, query.")
    pair: str = Field("", description="Second input: context of a question, other sentence, candidate.")
    labels: str = Field("", description="Class, or a list of classes.")
    value: str = Field("", description="A number to predict; similarity, relevance, or whether it was clicked.")
    tokens: str = Field("", description="Words: a list, or one text cut at white space.")
    tags: str = Field("", description="Tags of the words, in the same form.")
    spans: str = Field(
        "", description="List of {start, end, label}, in characters; or {answer_start, text}, as SQuAD has answers."
    )
    target: str = Field("", description="Text to write: translation, summary.")
    messages: str = Field("", description="List of {role, content}; roles system, user, assistant.")
    chosen: str = Field("", description="The better answer.")
    rejected: str = Field("", description="The worse one.")
    group: str = Field("", description="What must stay in one split; of a ranking, the query. Default there: the text.")
    split: str = Field("", description="train, validation (or dev, valid), test; empty values go by hash.")

    @property
    def given(self) -> dict[str, str]:
        return {field: name for field, name in self if name}


class LabelSource(Frozen):
    """One place examples come from."""

    kind: SourceKind = Field(
        description="jsonl, csv (with a header), parquet, orc: tables, mapped by `columns`. lines: a sentence a line, one file a "
        "class. conll: a word and its tag a line. squad: SQuAD's JSON. semeval-relations: sentences with <e1> and <e2>. "
        "dialogues: ChatterBot's YAML. package-topics: descriptions of the Python packages installed here."
    )
    path: str = Field("", description="Folder (searched recursively) or file. Empty only for package-topics.")
    name: str = Field("", max_length=64, description="Name in the `source` column. Default: the kind.")
    split: Split | None = Field(None, description="Of all its examples. None: by column `split`, or by hash.")
    columns: ColumnNames = Field(default_factory=lambda: ColumnNames(), description="Of jsonl, csv, parquet, orc.")
    classes: dict[str, str] = Field(
        default_factory=dict,
        description="lines: file name -> class. Others: a class as the source writes it -> its name; those not listed stay.",
    )
    label_separator: str = Field("", description="csv, multi_label: between the classes of a cell. Empty: one class.")
    encoding: str = Field("", description="lines, csv, conll, semeval-relations: Empty: found out for each file.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="csv: between fields.")
    word_column: int = Field(0, description="conll: place of the word in a line; negative from its end.")
    tag_column: int = Field(-1, description="conll: place of the tag.")
    translations: str = Field("", description="squad, translation: the same questions in the other language.")
    translate: Literal["questions", "contexts", "both"] = Field("both", description="squad, translation: which texts.")
    # not `keys`: Prefect takes what has such an attribute for a mapping
    key_file: str = Field("", description="semeval-relations: file `id<tab>relation` for sentences without a relation.")
    directed: bool = Field(True, description="semeval-relations: False cuts (e1,e2) off, as SemEval's keys do.")
    topic_depth: int = Field(1, ge=1, le=4, description="package-topics: parts of `Topic :: A :: B` that make a class.")

    @property
    def label(self) -> str:
        return self.name or self.kind

    @model_validator(mode="after")
    def has_what_its_kind_needs(self) -> Self:
        if not self.path and self.kind != "package-topics":
            raise ValueError(f"source {self.label!r}: path is empty; set it to a file or folder of {self.kind}")
        if self.kind == "lines" and not self.classes:
            raise ValueError(f"source {self.label!r}: classes is empty; set file name -> class for each file")
        if self.kind not in MAPPED and self.columns.given:
            raise ValueError(f"source {self.label!r}: columns are of {', '.join(MAPPED)}; {self.kind} has its own form")
        return self


class LeakSpec(Frozen):
    """Near copies across splits: MinHash-LSH with verification, as in dedup, at bands that miss hardly any pair."""

    action: Literal["drop", "report", "refuse"] = Field(
        "drop",
        description="What happens to a row of train that copies one of validation or test, or one of validation that copies one of "
        "test: it is rejected; counted as `leak` only; or the step ends.",
    )
    ngram: int = Field(3, ge=1, le=20, description="Words a shingle; a shorter text is compared as a whole only.")
    min_jaccard: float = Field(0.7, gt=0, le=1, description="Of the shingles of two texts from which they are copies.")
    bands: int = Field(32, ge=1, le=64, description="LSH bands: at Jaccard 0.7, 32 of 4 miss 2 pairs in 10,000.")
    rows: int = Field(4, ge=1, le=64, description="Hashes a band.")


class LabelSpec(Frozen):
    """A labelled set for one task."""

    task: TaskKind = Field(description="What is learned; it decides which columns a row must have.")
    sources: tuple[LabelSource, ...] = Field(
        min_length=1, description="Read in this order; of two copies the first stays."
    )
    label_set: tuple[str, ...] = Field(
        (), description="Classes allowed (tagging: entity types). Empty: those found in train."
    )
    validation_share: float = Field(0.1, ge=0, lt=1, description="Of the rows whose split is not given, by hash.")
    test_share: float = Field(0.0, ge=0, lt=1, description="The same for test.")
    split_seed: int = Field(0, ge=0, description="Of that hash.")
    outside: Literal["reject", "remove"] = Field(
        "reject", description="A class outside label_set: reject the row, or remove the class (the tag becomes O)."
    )
    max_outside_share: float = Field(
        0.05, ge=0, le=1, description="End the step if more rows than this have a class outside label_set."
    )
    invalid_tags: Literal["repair", "reject"] = Field(
        "repair", description="I-X that follows no X: becomes B-X, as conlleval reads it (also IOB1); or the row goes."
    )
    misplaced_answers: Literal["repair", "reject"] = Field(
        "repair",
        description="An answer that is not where it is said to be, but once in the context: moved there; or rejected.",
    )
    conflicts: Literal["keep", "drop"] = Field(
        "keep",
        description="Rows with the same input and another answer. Counted as `conflict`; drop rejects all of them.",
    )
    unseen: Literal["drop", "refuse"] = Field(
        "drop", description="Rows of validation and test with a class that train has not: rejected, or the step ends."
    )
    leak: LeakSpec = Field(default_factory=lambda: LeakSpec(), description="Near copies across splits.")
    max_reject_share: float = Field(0.5, ge=0, le=1, description="End the step if more rows than this are rejected.")
    max_row_bytes: int = Field(2_000_000, ge=1_000, description="Of UTF-8; a longer line or row is rejected.")

    @property
    def wanted_splits(self) -> tuple[Split, ...]:
        """Those that may not be empty."""
        shares: dict[Split, float] = {"train": 1, "validation": self.validation_share, "test": self.test_share}
        by_hash = any(source.split is None and not source.columns.split for source in self.sources)
        given = {source.split for source in self.sources}
        return tuple(
            split for split, share in shares.items() if split == "train" or split in given or (by_hash and share > 0)
        )

    @model_validator(mode="after")
    def sources_have_what_the_task_needs(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing for train; their sum must be below 1")
        for number, source in enumerate(self.sources):
            where = f"sources[{number}] ({source.label})"
            if source.kind in MAPPED:
                self._require_columns(where, source.columns)
            elif self.task not in GIVES[source.kind]:
                raise ValueError(f"{where}: {source.kind} has no {self.task}, only {', '.join(GIVES[source.kind])}")
            if source.kind == "squad" and self.task == "translation" and not source.translations:
                raise ValueError(f"{where}: translations is empty; set it to the file of the other language")
        return self

    def _require_columns(self, where: str, columns: ColumnNames) -> None:
        missing = [field for field in REQUIRED[self.task] if field not in columns.given]
        if self.task == "preference" and not (columns.text or columns.messages):
            missing.append("text (or messages)")
        if missing:
            raise ValueError(
                f"{where}: columns.{', columns.'.join(missing)} empty; {self.task} needs a column for each"
            )


class LabelJobSpec(LabelSpec):
    """`LabelSpec` with the digest of each source's files, so that a changed file is another request."""

    digests: dict[str, str] = Field(default_factory=dict)
