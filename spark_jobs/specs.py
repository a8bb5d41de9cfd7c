"""What each data step is asked to do. One frozen model a step; the same model is the YAML preset, `--set` and the form.

Literals here are identity: change one and the step runs again. Paths of outputs, hosts and machine sizes are not.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from spark_jobs.manifests import Frozen

TableFormat = Literal["parquet", "orc"]
TokenizerModel = Literal["bpe", "unigram", "wordpiece"]
PersonalData = Literal["email", "ip", "phone", "card", "iban"]


class SourceSpec(Frozen):
    """One place documents come from."""

    kind: Literal["python-environment", "jsonl", "lines", "text", "csv", "html", "warc", "parquet", "orc"] = Field(
        "python-environment",
        description="python-environment: the documentation this installation carries. jsonl, lines, csv (with a header): "
        "one document a line or row. text, html: one a file. warc: web archives, WET and ARC too. parquet, orc: tables. "
        "All but tables also as .gz or .zst.",
    )
    path: str = Field("", description="Folder (searched recursively) or file. Empty only for python-environment.")
    name: str = Field("", max_length=64, description="Name in the `source` column. Default: the kind.")
    text_column: str = Field("text", min_length=1, description="Column or JSON key that holds the text.")
    columns: tuple[str, ...] = Field(
        (),
        description="jsonl, csv, parquet, orc: the other columns known. Once given, a new one is counted as "
        "column.new.<name>, and a table or CSV file that lacks one of them is refused. Empty: not checked.",
    )
    on_drift: Literal["report", "fail"] = Field(
        "report", description="fail: a new, missing or retyped column ends the step instead of being counted."
    )
    encoding: str = Field("", description="lines, text, csv, html: their encoding. Empty: found out for each file.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="csv: between fields.")
    quoted_newlines: bool = Field(
        True, description="csv: quoted fields may hold line ends. False spares a pass over each large file."
    )
    html_timeout_s: float = Field(10.0, gt=0, le=3600, description="html, warc: longest that one page may take.")
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


class RepetitionSpec(Frozen):
    """Gopher repetition rules (Rae et al. 2021, arXiv:2112.11446, table A1); definitions: repetition_rules.py."""

    max_dup_line_ratio: float = Field(0.3, ge=0, le=1, description="Later copies of lines, of all lines. Gopher: 0.3.")
    max_dup_paragraph_ratio: float = Field(0.3, ge=0, le=1, description="The same for paragraphs. Gopher: 0.3.")
    max_dup_line_char_ratio: float = Field(
        0.2, ge=0, le=1, description="Characters in later copies of lines. Gopher: 0.2."
    )
    max_dup_paragraph_char_ratio: float = Field(0.2, ge=0, le=1, description="The same for paragraphs. Gopher: 0.2.")
    max_top_2gram_ratio: float = Field(
        0.2, ge=0, le=1, description="Characters in the most frequent 2-gram of words. Gopher: 0.2."
    )
    max_top_3gram_ratio: float = Field(
        0.18, ge=0, le=1, description="Characters in the most frequent 3-gram of words. Gopher: 0.18."
    )
    max_top_4gram_ratio: float = Field(
        0.16, ge=0, le=1, description="Characters in the most frequent 4-gram of words. Gopher: 0.16."
    )
    max_dup_5gram_ratio: float = Field(0.15, ge=0, le=1, description="Characters in repeated 5-grams. Gopher: 0.15.")
    max_dup_6gram_ratio: float = Field(0.14, ge=0, le=1, description="Characters in repeated 6-grams. Gopher: 0.14.")
    max_dup_7gram_ratio: float = Field(0.13, ge=0, le=1, description="Characters in repeated 7-grams. Gopher: 0.13.")
    max_dup_8gram_ratio: float = Field(0.12, ge=0, le=1, description="Characters in repeated 8-grams. Gopher: 0.12.")
    max_dup_9gram_ratio: float = Field(0.11, ge=0, le=1, description="Characters in repeated 9-grams. Gopher: 0.11.")
    max_dup_10gram_ratio: float = Field(0.1, ge=0, le=1, description="Characters in repeated 10-grams. Gopher: 0.1.")


class C4Spec(Frozen):
    """C4 rules (Raffel et al. 2020, arXiv:1910.10683); definitions: line_rules.py. Lines that break one are removed first."""

    min_words_a_line: int = Field(3, ge=0, description="Of a line that stays. datatrove: 3; TensorFlow Datasets: 5.")
    min_sentences: int = Field(5, ge=0, description="Of what is left. datatrove: 5; TensorFlow Datasets and DCLM: 3.")
    max_placeholders: int = Field(0, ge=0, le=1, description="0 rejects lorem ipsum and curly brackets, 1 keeps them.")


class FineWebSpec(Frozen):
    """FineWeb's own rules (arXiv:2406.17557, section 3.6)."""

    min_terminal_line_ratio: float = Field(
        0.12, ge=0, le=1, description="Lines ending in terminal punctuation. FineWeb: 0.12."
    )
    max_dup_line_char_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Characters in later copies of lines. FineWeb's text: 0.1; its appendix and code: 0.01.",
    )
    max_short_line_ratio: float = Field(
        0.67, ge=0, le=1, description="Lines of fewer than 30 characters. FineWeb: 0.67."
    )
    max_line_word_ratio: float = Field(0.3, ge=0, description="Line breaks per word. datatrove: 0.3.")


class ClassifierTrainSpec(Frozen):
    """Two folders of examples; a text is a .txt or .md file, or a line of .jsonl, all also as .gz or .zst."""

    good: str = Field(min_length=1, description="Folder (searched recursively) or file of texts worth training on.")
    bad: str = Field(min_length=1, description="The same of texts that are not.")
    text_column: str = Field("text", min_length=1, description="jsonl: the key that holds the text.")
    ngram: int = Field(2, ge=1, le=5, description="Longest run of words that is a feature. DCLM: 2.")
    num_features: int = Field(
        1 << 18, ge=1 << 10, le=1 << 24, description="Buckets that runs of words are hashed to; 4 bytes each."
    )
    max_train_bytes: int = Field(
        20_000_000, ge=10_000, description="Text of each folder that is used, taken in the order of its hash."
    )


class ClassifierSpec(ClassifierTrainSpec):
    """A quality classifier: hashed words and logistic regression, trained once, kept until the folders change."""

    min_score: float = Field(
        0.0, ge=0, le=1, description="Least quality_score of a document that stays. 0 scores and keeps all."
    )


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
    repetition: RepetitionSpec | None = Field(None, description="Gopher repetition rules; {} turns them on.")
    c4: C4Spec | None = Field(None, description="C4 line and document rules; {} turns them on.")
    fineweb: FineWebSpec | None = Field(None, description="FineWeb's own rules; {} turns them on.")
    classifier: ClassifierSpec | None = Field(
        None, description="Fill the column quality_score by a model that learned from two folders."
    )

    @model_validator(mode="after")
    def language_rules_have_languages(self) -> Self:
        if (self.languages or self.min_language_score > 0) and not self.identify_language:
            raise ValueError("languages and min_language_score need identify_language=true")
        return self


class ClassifierJobSpec(ClassifierTrainSpec):
    """`ClassifierTrainSpec` with the digest of each folder's files, so that a changed folder is another request, and with what
    cleaning does to a text (see CleanSpec; min_words_a_line only if C4's rules are on).
    """

    digests: dict[str, str] = Field(default_factory=dict)
    fix_mojibake: bool = False
    mask_pii: tuple[PersonalData, ...] = ()
    min_words_a_line: int | None = None


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
    passages: bool = Field(False, description="Cut passages of `passage_words` words out that an earlier document has.")
    passage_words: int = Field(50, ge=10, le=1000, description="Words of a passage. Lee et al.: 50 tokens.")
    max_source_removal: float = Field(
        0.9, gt=0, le=1, description="Stop if more than this share of a source of 20 documents or more are near copies."
    )


class EvaluationSet(Frozen):
    """Items that must not be trained on."""

    name: str = Field(min_length=1, max_length=64, description="Named in rejects.")
    path: str = Field(
        min_length=1, description="A .jsonl or .txt file, or a folder of them. An item is a line, or a text file."
    )
    fields: tuple[str, ...] = Field((), description="JSON keys that hold the item's texts. Empty: all strings.")


class DecontaminateSpec(Frozen):
    """Exact n-grams of evaluation items, as in GPT-3 (Brown et al. 2020, appendix C: 13-grams)."""

    sets: tuple[EvaluationSet, ...] = Field((), description="Empty: the step is left out.")
    ngram: int = Field(13, ge=5, le=50, description="Words of a feature. GPT-3: 13.")
    min_item_words: int = Field(
        4, ge=2, description="An item shorter than `ngram` is looked for whole if it has these."
    )
    min_item_share: float = Field(0.5, ge=0, le=1, description="Share of an item's features that makes a document go.")
    max_items: int = Field(10, ge=1, description="A feature of more items is a template and is ignored.")
    max_document_share: float = Field(
        0.001,
        ge=0,
        le=1,
        description="A feature in a larger share of tonight's documents (and in more than 10) is ignored.",
    )


class DecontaminateJobSpec(DecontaminateSpec):
    """`DecontaminateSpec` with the digest of each set's files, so that a changed set is another request."""

    digests: dict[str, str] = Field(default_factory=dict)


class CheckSpec(Frozen):
    """Bounds of the Great Expectations suites; the rest of each suite follows from the schema."""

    min_rows: int = Field(1, ge=1, description="Fewest rows a dataset may have.")
    max_rows: int = Field(10_000_000_000, ge=1, description="Most rows a dataset may have.")
    max_reject_ratio: float = Field(0.95, ge=0, le=1, description="Largest share of rows a step may refuse.")


class TokenizerSpec(Frozen):
    """A tokenizer is made once and kept by later nights: the model's vocabulary depends on it."""

    folder: str = Field("", description="Import this folder's tokenizer.json instead of training. Empty: train.")
    model: TokenizerModel = Field("bpe", description="What is trained; each over bytes, so that no text is unknown.")
    vocab_size: int = Field(
        8192, ge=300, le=1_000_000, description="Entries, special tokens included; wordpiece has 515 at least."
    )
    max_train_bytes: int = Field(
        50_000_000, ge=10_000, description="Text used for training the tokenizer, taken in document-id order."
    )


class TokenizeSpec(Frozen):
    seq_len: int = Field(256, ge=8, le=1_048_576, description="Tokens a training sequence.")
    heldout_share: float = Field(
        0.1, ge=0, lt=1, description="Share of documents kept out of training, chosen by document id."
    )
    cut: Literal["sentences", "tokens"] = Field(
        "sentences",
        description="A document longer than a sequence is cut where a paragraph, line or sentence ends in the sequence's last "
        "half, or at its full length.",
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
