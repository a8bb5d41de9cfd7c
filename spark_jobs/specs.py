"""What each data step is asked to do. One frozen model a step; the same model is the YAML preset, `--set` and the form.

Literals here are identity: change one and the step runs again. Paths of outputs, hosts and machine sizes are not.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from spark_jobs.manifests import Frozen

TableFormat = Literal["parquet", "orc"]
PersonalData = Literal["email", "ip", "phone", "card", "iban"]


class SourceSpec(Frozen):
    """One place documents come from."""

    kind: Literal["python-environment", "jsonl", "text", "parquet", "orc"] = Field(
        "python-environment",
        description="python-environment: the documentation this installation carries. jsonl: .jsonl, .jsonl.gz, "
        ".jsonl.zst. text: one document a file. parquet, orc: tables.",
    )
    path: str = Field("", description="Folder (searched recursively) or file. Empty only for python-environment.")
    name: str = Field("", max_length=64, description="Name in the `source` column. Default: the kind.")
    text_column: str = Field("text", min_length=1, description="Column or JSON key that holds the text.")
    priority: int = Field(10, ge=0, le=1000, description="Of two duplicates the lower number survives.")
    first_night_share: float = Field(
        0.6, gt=0, le=1, description="python-environment only: share of its files already there on the first night."
    )
    nightly_share: float = Field(
        0.1, ge=0, le=1, description="python-environment only: share that arrives with each later night."
    )


class IngestSpec(Frozen):
    sources: tuple[SourceSpec, ...] = Field((SourceSpec(),), min_length=1, description="Read in this order.")
    max_document_bytes: int = Field(
        2_000_000,
        ge=1_000,
        description="Longer documents are rejected (bytes of UTF-8), so that no single one fills a core.",
    )
    format: TableFormat = Field("parquet", description="Columnar format of documents, here and in the steps behind.")


class CleanSpec(Frozen):
    """Gopher quality rules (Rae et al. 2021, arXiv:2112.11446, table A1). A document breaking any rule is rejected."""

    fix_mojibake: bool = Field(
        False, description="Undo UTF-8 read as Latin-1 and the like (ftfy). Looks only at texts with suspicious bytes."
    )
    mask_pii: tuple[PersonalData, ...] = Field(
        ("email", "ip", "phone", "card", "iban"),
        description="Personal data replaced by <email> and so on; each is validated (see pii.py). Empty: none.",
    )
    identify_language: bool = Field(True, description="Fill the columns language and language_score (fastText, 176).")
    languages: tuple[str, ...] = Field((), description="ISO 639 codes that may stay. Empty: all.")
    min_language_score: float = Field(0.0, ge=0, le=1, description="Least probability of the language. FineWeb: 0.65.")
    min_words: int = Field(50, ge=1, description="Fewest words. Gopher: 50.")
    max_words: int = Field(100_000, ge=1, description="Most words. Gopher: 100,000.")
    min_mean_word_length: float = Field(3.0, ge=0, description="Characters. Gopher: 3.")
    max_mean_word_length: float = Field(10.0, gt=0, description="Characters. Gopher: 10.")
    max_symbol_word_ratio: float = Field(0.1, ge=0, description="('#' or ellipsis) per word. Gopher: 0.1.")
    max_bullet_line_ratio: float = Field(0.9, ge=0, le=1, description="Lines starting with a bullet. Gopher: 0.9.")
    max_ellipsis_line_ratio: float = Field(0.3, ge=0, le=1, description="Lines ending with an ellipsis. Gopher: 0.3.")
    min_alpha_word_ratio: float = Field(0.8, ge=0, le=1, description="Words with a letter. Gopher: 0.8.")
    min_stop_words: int = Field(
        2,
        ge=0,
        le=8,
        description="Of {the, be, to, of, and, that, have, with}; asked of English, and of all texts if the language is "
        "not identified. 0 turns it off. Gopher: 2.",
    )


class DedupSpec(Frozen):
    """Exact, then MinHash-LSH with verification (Broder 1997; bands as in FineWeb, arXiv:2406.17557)."""

    ngram: int = Field(5, ge=1, le=20, description="Words a shingle. FineWeb: 5.")
    bands: int = Field(14, ge=1, le=64, description="LSH bands. FineWeb: 14.")
    rows: int = Field(8, ge=1, le=64, description="Hashes a band. FineWeb: 8.")
    min_jaccard: float = Field(
        0.7,
        gt=0,
        le=1,
        description="A candidate is removed only if its shingles' Jaccard with a kept document reaches this.",
    )
    seed: int = Field(1, ge=0, description="Of the hash family. FineWeb: 1.")


class CheckSpec(Frozen):
    """Bounds of the Great Expectations suites; the rest of each suite follows from the schema."""

    min_rows: int = Field(1, ge=1, description="Fewest rows a dataset may have.")
    max_rows: int = Field(10_000_000_000, ge=1, description="Most rows a dataset may have.")
    max_reject_ratio: float = Field(0.95, ge=0, le=1, description="Largest share of rows a step may refuse.")


class TokenizerSpec(Frozen):
    """A tokenizer is made once and kept by later nights: the model's vocabulary depends on it."""

    folder: str = Field("", description="Import this folder's tokenizer.json instead of training. Empty: train.")
    vocab_size: int = Field(8192, ge=300, le=1_000_000, description="Byte-level BPE entries, special tokens included.")
    max_train_bytes: int = Field(
        50_000_000, ge=10_000, description="Text used for training the tokenizer, taken in document-id order."
    )


class TokenizeSpec(Frozen):
    seq_len: int = Field(256, ge=8, le=1_048_576, description="Tokens a training sequence.")
    heldout_share: float = Field(
        0.1, ge=0, lt=1, description="Share of documents kept out of training, chosen by document id."
    )
    seed: int = Field(0, ge=0, description="Of the order of sequences.")
    format: TableFormat = Field("parquet", description="Columnar format of the token shards.")


class SnapshotSpec(Frozen):
    replay_ratio: float = Field(
        0.5, ge=0, le=100, description="Sequences of earlier nights drawn for each new one when training goes on."
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="How often documents of a source are drawn an epoch, by source name; 1 where none is given, 0 never.",
    )

    @field_validator("weights")
    @classmethod
    def weights_are_finite(cls, weights: dict[str, float]) -> dict[str, float]:
        for source, weight in weights.items():
            if not 0 <= weight <= 100:
                raise ValueError(f"weight of source {source!r} is {weight}; wanted 0 to 100")
        return weights


class ForgetRule(Frozen):
    """Which documents are forgotten: doc: this document id; source: all of this name; origin: a glob over the file."""

    by: Literal["doc", "source", "origin"]
    value: str = Field(min_length=1)


class SnapshotJobSpec(SnapshotSpec):
    """`SnapshotSpec` with what the workspace's forgotten.jsonl asks for."""

    forgotten: tuple[ForgetRule, ...] = ()


class ForgottenSpec(Frozen):
    forgotten: tuple[ForgetRule, ...]
