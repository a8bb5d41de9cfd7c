"""Typed handles: each is the parsed `_manifest.json` beside the data it describes. Pydantic only.

A handle is what steps exchange instead of path strings. It holds nothing that differs between two honest runs of the
same step (no times, no host names), so its digest can take part in the keys of the steps behind it. What a run cost
is written beside it in `_report.json`.

    <workspace>/clean/clean-3f9a1c0b77d2e415/
        data/part-00000.parquet        what the step is for
        rejects/part-00000.parquet     what it refused, with reason, value, threshold
        _manifest.json                 this file, written last
        _report.json                   seconds, CPU-seconds, peak memory of the run that made it
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spark_jobs.errors import DataError

MANIFEST = "_manifest.json"
REPORT = "_report.json"
FORMAT_VERSION = 1


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(Frozen):
    """One file of an output. `path` is relative to the output's folder, `sha256` is of its bytes."""

    path: str
    size_bytes: int
    sha256: str
    num_rows: int | None = None


class Column(Frozen):
    """Name and Spark SQL type (`simpleString`) of one column of `data/`."""

    name: str
    type: str


class Parent(Frozen):
    """An input of the step: the role it played, its address in the workspace, and its manifest's digest."""

    role: str
    address: str
    digest: str


class Handle(Frozen):
    """Fields common to every output. Subclasses add what their readers need to know before opening a file."""

    kind: ClassVar[str] = "output"
    # Fields that came after FORMAT_VERSION 1: not written while they have their default, so that digests of outputs made
    # before stay what they were.
    later: ClassVar[tuple[str, ...]] = ()

    version: int = FORMAT_VERSION
    step: str
    key: str
    night: str
    format: str
    num_rows: int
    files: tuple[FileEntry, ...]
    columns: tuple[Column, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    spec: dict[str, Any]
    code: dict[str, str]
    libraries: dict[str, str]
    parents: tuple[Parent, ...] = ()
    uri: str = Field("", exclude=True)

    @property
    def address(self) -> str:
        """Where this output lives inside its workspace, e.g. `clean/clean-3f9a1c0b77d2e415`."""
        return f"{self.kind}/{self.step}-{self.key}"

    @property
    def digest(self) -> str:
        """sha256 of the canonical manifest; equal for two runs that made the same bytes the same way."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        unused = {name for name in self.later if getattr(self, name) == type(self).model_fields[name].default}
        fields = self.model_dump(mode="json", exclude=unused | {"uri"})
        return json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    @property
    def workspace(self) -> Path:
        return Path(self.uri).parent.parent

    def at(self, address: str) -> str:
        """The uri of another output of the same workspace."""
        return str(self.workspace / address)

    def folder(self, part: str = "data") -> str:
        return str(Path(self.uri) / part)

    def paths(self, part: str = "data") -> list[str]:
        """Absolute paths of the files under `part`, in manifest order."""
        return [str(Path(self.uri) / f.path) for f in self.files if f.path.startswith(part + "/")]

    def parent(self, role: str) -> Parent | None:
        return next((p for p in self.parents if p.role == role), None)

    @classmethod
    def load(cls, uri: str | Path) -> Self:
        """Open a published output through its manifest and check that its files are there at their size.

        Raises: DataError if the manifest is missing, cannot be parsed, or a file is missing or of another size.
        """
        path = Path(uri) / MANIFEST
        try:
            fields = json.loads(path.read_text())
            handle = cls.model_validate(fields | {"uri": str(uri)})
        except FileNotFoundError as err:
            raise DataError(f"{uri}: no {MANIFEST}, so this output was never finished; run its step again") from err
        except (json.JSONDecodeError, ValidationError) as err:
            raise DataError(
                f"{path}: not a manifest of {cls.__name__} ({str(err).splitlines()[0]}); delete the folder and run its step again"
            ) from err
        handle.check_sizes()
        return handle

    def check_sizes(self) -> None:
        for entry in self.files:
            path = Path(self.uri) / entry.path
            size = path.stat().st_size if path.is_file() else None
            if size != entry.size_bytes:
                found = "missing" if size is None else f"{size} bytes"
                raise DataError(
                    f"{path}: {found}, manifest says {entry.size_bytes} bytes; delete {self.uri} and run step {self.step} again"
                )

    def check_bytes(self) -> None:
        """Compare every file's sha256 with the manifest. Raises: DataError naming the first file that differs."""
        for entry in self.files:
            path = Path(self.uri) / entry.path
            if file_sha256(path) != entry.sha256:
                raise DataError(
                    f"{path}: changed since it was published (sha256 differs); delete {self.uri} and run step {self.step} again"
                )


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Documents(Handle):
    """Columns: doc_id string (32 hex digits, 128-bit hash of the text as ingested), text string, source string,
    origin string (file and place inside it), priority int (lower survives), ordered by doc_id.

    `rejects/` holds what the step refused (see `schemas.REJECTS`); `counts` has `in`, `out` and `reject.<reason>`.
    """

    kind: ClassVar[str] = "documents"


class QualityClassifier(Handle):
    """`data/weights.npy` float32[num_rows] and `data/model.json`, see quality_model.py.

    num_good, num_bad: texts it was made from, of which num_heldout were not learned from; auc and accuracy are of those:
    share of pairs of a good and a bad text in which the good one scores higher, and share of texts on their side of 0.5
    (mean of both kinds).
    """

    kind: ClassVar[str] = "classifiers"
    num_good: int
    num_bad: int
    num_heldout: int
    auc: float
    accuracy: float


class CheckReport(Handle):
    """Great Expectations result of one dataset: `results.json`, and `data_docs/` for the browser."""

    kind: ClassVar[str] = "checks"
    checked: str
    success: bool
    num_expectations: int
    failed: tuple[str, ...] = ()


class TokenizerFiles(Handle):
    """`data/tokenizer.json` and `data/tokenizer_config.json`, loadable by `transformers.AutoTokenizer`."""

    kind: ClassVar[str] = "tokenizers"
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int


class TokenShards(Handle):
    """`data/`: one packed sequence a row, in a seeded global order: seq_id long (0..n-1), tokens array<int>
    (at most seq_len), doc_lengths array<int> (sums to the number of tokens), doc_ids array<string>.
    `heldout/`: documents kept out of training: doc_id, text, source, language.
    """

    kind: ClassVar[str] = "tokens"
    seq_len: int
    vocab_size: int
    num_tokens: int
    num_heldout: int
    tokenizer: str


class NightData(Frozen):
    """The outputs of one night that later nights need, by address and digest."""

    night: str
    ingested: Parent
    unique: Parent
    tokens: Parent
    num_sequences: int
    num_tokens: int
    num_heldout: int


class ForgottenDocuments(Handle):
    """`data/part-00000.parquet`: doc_id of the documents of earlier nights that were asked to be forgotten, ascending."""

    kind: ClassVar[str] = "forgotten"


class Corpus(Handle):
    """Snapshot of all nights so far, oldest first; tonight's is the last. It holds addresses, not data.

    Where documents are forgotten or sources weighted it also holds `forgotten/`: doc_id, ascending; and `sequences/`: the
    training sequences that are not drawn as they are: night, seq_id, pieces array<int> (documents of the sequence, by
    place, that are cut out), weight double (times it is drawn an epoch, on average; 0 for one with nothing left).
    """

    kind: ClassVar[str] = "corpus"
    later: ClassVar[tuple[str, ...]] = ("num_forgotten", "num_left_out")
    nights: tuple[NightData, ...]
    tokenizer: Parent
    seq_len: int
    vocab_size: int
    num_forgotten: int = 0  # documents
    num_left_out: int = 0  # sequences with weight 0


class LabelledSet(Handle):
    """Examples of a fine-tuning task, checked. `data/`: one table sorted by id, the same columns for every task, those a
    task has no use for null.

    id: 32 hex digits, of the content; split: train | validation | test; source; text, pair: first and second input;
    labels: names of classes; value: a number to predict; tokens, tags: words and their BIO tags; spans (start, end, label):
    characters, of the two arguments in `text`, or of the answers in `pair`; target: text to write; messages (role,
    content); chosen, rejected: answers; group: the query a candidate belongs to; made_by, made_from: augmentation and
    the id of the original row.
    """

    kind: ClassVar[str] = "labelled"
    task: str
    label_set: tuple[str, ...] = ()
    num_train: int = 0
    num_validation: int = 0
    num_test: int = 0
