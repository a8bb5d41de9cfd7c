"""What the page of a night shows, read from its manifests and tables. Works for a night that stopped half way too.

Counts are exact (from manifests). Lengths and languages are of a sample: documents are ordered by a hash of their content,
so the first rows are a random sample, and always the same one.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.compute as pc
from pyarrow import parquet
from pydantic import Field

from spark_jobs.errors import DataError
from spark_jobs.manifests import REPORT, CheckReport, Corpus, Documents, Frozen, Handle, TokenShards
from spark_jobs.snapshot import batches_of
from tasks.ledger import awaiting, read_ledger
from tasks.lineage import scan
from tasks.usage import Usage
from tasks.workspace import Workspace
from training.manifests import Checkpoint, CompressionChoice, EvaluationReport, ModelFolder, Release, Scorecard, Verdict

H = TypeVar("H", bound=Handle)
SAMPLE_BYTES = 32 << 20
EXAMPLES = 3  # of each reason
EXCERPT = 220  # characters
TOP = 8
MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
NUMBER = re.compile(r"\d{3,}")
KEPT_COPY = re.compile(r"kept ([0-9a-f]{32})")


class Stage(Frozen):
    """A step that reads documents: rows in, rows out, rows refused by reason."""

    step: str
    num_in: int
    num_out: int
    rejects: dict[str, int]


class Example(Frozen):
    step: str
    reason: str
    value: float | None
    threshold: float | None
    origin: str
    detail: str
    text: str


class Cost(Frozen):
    """What a step took. megabytes: of text (1e6 bytes) it read, where that is known."""

    step: str
    usage: Usage
    megabytes: float | None = None

    @property
    def rate(self) -> float | None:
        """Megabytes a second and core."""
        if not self.megabytes or self.usage.cpu_seconds <= 0:
            return None
        return self.megabytes / self.usage.cpu_seconds


class Score(Frozen):
    model: str
    bits_per_byte: float
    weight_bytes: int = 0


class Check(Frozen):
    step: str
    success: bool
    num_expectations: int
    failed: tuple[str, ...]
    page: str


class NightFacts(Frozen):
    pipeline: str
    night: str
    stages: tuple[Stage, ...] = ()
    sources: dict[str, tuple[int, int]] = Field(default_factory=dict)  # kept, refused
    languages: dict[str, int] = Field(default_factory=dict)
    lengths: tuple[int, ...] = ()  # documents of 2^i to 2^(i+1) bytes, by i
    num_sampled: int = 0
    clusters: dict[int, int] = Field(default_factory=dict)  # copies removed for one document -> how many such documents
    largest: tuple[tuple[str, int], ...] = ()
    examples: tuple[Example, ...] = ()
    costs: tuple[Cost, ...] = ()
    checks: tuple[Check, ...] = ()
    num_sequences: int = 0
    num_tokens: int = 0
    num_heldout: int = 0
    corpus_tokens: int = 0
    num_nights: int = 0
    num_forgotten: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    num_parameters: int = 0
    scores: tuple[Score, ...] = ()
    gzip_bits_per_byte: float = 0.0
    pareto: str = ""  # picture of the candidates, SVG
    choice: str = ""  # which of them is the best, and why
    decision: str = ""
    reason: str = ""
    afterwards: tuple[str, ...] = ()  # what was decided on tonight's candidate later: by whom, when, why
    evaluation: str = ""  # the report of it, from the page's folder
    price_cpu_hour: float | None = None
    price_gpu_hour: float | None = None

    @property
    def seconds(self) -> float:
        return sum(cost.usage.seconds for cost in self.costs)

    @property
    def cpu_hours(self) -> float:
        return sum(cost.usage.cpu_seconds for cost in self.costs) / 3600

    @property
    def price(self) -> float | None:
        return None if self.price_cpu_hour is None else self.price_cpu_hour * self.cpu_hours


def night_facts(workspace: Workspace, night: str) -> NightFacts:
    """Everything known of a night so far."""
    outputs = _Outputs(workspace, night)
    chain = [outputs.get(step, Documents) for step in outputs.steps if _is_documents(outputs, step)]
    documents = [d for d in chain if d is not None]
    unique = documents[-1] if documents else None
    facts: dict[str, Any] = {"pipeline": workspace.name, "night": night, "costs": tuple(_costs(outputs, documents))}
    facts["stages"] = tuple(_stage(d) for d in documents)
    if unique is not None:
        facts |= _sample(unique) | _clusters(documents)
        facts["sources"] = _sources(documents)
        facts["examples"] = tuple(_examples(documents))
    facts["checks"] = tuple(_checks(outputs))
    return NightFacts(**facts, **_token_facts(outputs), **_model_facts(outputs), **_prices())


class _Outputs:
    """The outputs that a night has recorded, in the order they were made. A damaged one counts as missing."""

    def __init__(self, workspace: Workspace, night: str) -> None:
        self.workspace, self.night = workspace, night
        self._entries = workspace.record(night).outputs

    @property
    def steps(self) -> list[str]:
        return list(self._entries)

    def address(self, step: str) -> str:
        return self._entries[step].address

    def get(self, step: str, kind: type[H]) -> H | None:
        if step not in self._entries:
            return None
        try:
            return kind.load(self.workspace.at(self._entries[step].address))
        except DataError:
            return None

    def usage(self, step: str) -> Usage | None:
        path = self.workspace.at(self.address(step)) / REPORT
        return Usage.model_validate_json(path.read_text()) if path.is_file() else None


def _is_documents(outputs: _Outputs, step: str) -> bool:
    return outputs.address(step).startswith(Documents.kind + "/")


def _stage(documents: Documents) -> Stage:
    counts = documents.counts
    rejects = {name[7:]: n for name, n in counts.items() if name.startswith("reject.")}
    return Stage(
        step=documents.step,
        num_in=counts.get("in", documents.num_rows),
        num_out=counts.get("out", documents.num_rows),
        rejects=dict(sorted(rejects.items(), key=lambda entry: (-entry[1], entry[0]))),
    )


def _sample(unique: Documents) -> dict[str, Any]:
    names = {column.name for column in unique.columns}
    columns = ["text", "language"] if "language" in names else ["text"]
    lengths: Counter[int] = Counter()
    languages: Counter[str] = Counter()
    size = num_sampled = 0
    for batch in batches_of(unique, "data", columns):
        sizes = pc.binary_length(batch.column("text")).to_pylist()
        lengths.update(max(n, 1).bit_length() - 1 for n in sizes)
        if "language" in names:
            languages.update(name or "unknown" for name in batch.column("language").to_pylist())
        num_sampled += len(sizes)
        size += sum(sizes)
        if size >= SAMPLE_BYTES:
            break
    if set(languages) == {"unknown"}:
        languages.clear()
    histogram = tuple(lengths[i] for i in range(max(lengths, default=-1) + 1))
    return {"lengths": histogram, "num_sampled": num_sampled, "languages": dict(languages.most_common())}


def _sources(documents: list[Documents]) -> dict[str, tuple[int, int]]:
    kept, refused = _by_source(documents[-1], "data"), Counter[str]()
    for step in documents:
        refused += _by_source(step, "rejects")
    names = sorted(kept.keys() | refused.keys(), key=lambda name: (-kept[name] - refused[name], name))
    return {name: (kept[name], refused[name]) for name in names}


def _by_source(documents: Documents, part: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for batch in batches_of(documents, part, ["source"]):
        for entry in batch.column("source").value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    return counts


def _clusters(documents: list[Documents]) -> dict[str, Any]:
    """How many documents had how many copies removed for them, and the largest. From `clusters/`, or from the rejects."""
    copies: Counter[str] = Counter()
    for step in documents:
        if step.paths("clusters"):
            for row in scan(step, "clusters", ["doc_id", "num_exact", "num_near"]).to_pylist():
                copies[row["doc_id"]] += row["num_exact"] + row["num_near"]
            continue
        for batch in batches_of(step, "rejects", ["detail"]):
            found = (KEPT_COPY.match(detail or "") for detail in batch.column("detail").to_pylist())
            copies.update(match[1] for match in found if match)
    sizes = Counter(copies.values())
    largest = sorted(copies.items(), key=lambda entry: (-entry[1], entry[0]))[:TOP]
    return {"clusters": dict(sorted(sizes.items())), "largest": tuple(largest)}


def _examples(documents: list[Documents]) -> Iterator[Example]:
    names = ["doc_id", "reason", "value", "threshold", "origin", "detail"]
    for before, step in zip([None, *documents], documents, strict=False):
        chosen: dict[str, list[dict[str, Any]]] = {}
        for batch in batches_of(step, "rejects", names):
            for row in batch.to_pylist():
                rows = chosen.setdefault(row["reason"], [])
                if len(rows) < EXAMPLES:
                    rows.append(row)
        ids = {row["doc_id"] for rows in chosen.values() for row in rows} - {""}
        texts = _texts(before, ids) if before is not None else {}
        for reason in sorted(chosen):
            for row in chosen[reason]:
                text = masked(texts.get(row["doc_id"], ""))
                yield Example(
                    step=step.step, text=text, detail=masked(row["detail"] or ""),
                    **{name: row[name] for name in ("reason", "value", "threshold", "origin")},
                )  # fmt: skip


def _texts(documents: Documents, ids: set[str]) -> dict[str, str]:
    if not ids:
        return {}
    table = scan(documents, "data", ["doc_id", "text"], pc.field("doc_id").isin(sorted(ids)))
    return dict(zip(table.column("doc_id").to_pylist(), table.column("text").to_pylist(), strict=True))


def masked(text: str) -> str:
    """The beginning of a text, on one line, without addresses and longer numbers."""
    short = " ".join(text[: 4 * EXCERPT].split())
    short = NUMBER.sub("###", MAIL.sub("<email>", short)) if not KEPT_COPY.match(text) else short
    return short if len(short) <= EXCERPT else short[: EXCERPT - 1] + "…"


def _costs(outputs: _Outputs, documents: list[Documents]) -> Iterator[Cost]:
    """Steps of this night; what was kept from another night cost nothing tonight."""
    by_step = {d.step: before for before, d in zip([None, *documents], documents, strict=False)}
    for step in outputs.steps:
        usage = outputs.usage(step)
        if usage is None or not _made_tonight(outputs, step):
            continue
        read: float | None = None
        if step == "ingest" and documents:
            read = sum(scan(documents[0], "seen", ["size_bytes"]).column(0).to_pylist()) / 1e6
        elif by_step.get(step) is not None:
            read = _text_megabytes(by_step[step])
        elif step in ("tokenize", "check-documents") and documents:
            read = _text_megabytes(documents[-1])
        yield Cost(step=step, usage=usage, megabytes=read)


def _made_tonight(outputs: _Outputs, step: str) -> bool:
    handle = outputs.get(step, _kind_of(outputs.address(step)))
    return handle is not None and handle.night == outputs.night


def _kind_of(address: str) -> type[Handle]:
    waiting: list[type[Handle]] = [Handle]
    while waiting:
        kind = waiting.pop()
        if kind.kind == address.partition("/")[0]:
            return kind
        waiting += kind.__subclasses__()
    return Handle


def _text_megabytes(documents: Documents | None) -> float | None:
    """From the footers alone; ORC's do not say."""
    if documents is None or documents.format != "parquet":
        return None
    size = 0
    for path in documents.paths():
        footer = parquet.read_metadata(path)
        place = footer.schema.names.index("text")
        size += sum(footer.row_group(i).column(place).total_uncompressed_size for i in range(footer.num_row_groups))
    return size / 1e6


def _checks(outputs: _Outputs) -> Iterator[Check]:
    for step in outputs.steps:
        if outputs.address(step).startswith(CheckReport.kind + "/"):
            check = outputs.get(step, CheckReport)
            if check is not None:
                yield Check(
                    step=step, success=check.success, num_expectations=check.num_expectations, failed=check.failed,
                    page=f"../{check.address}/data_docs/index.html",
                )  # fmt: skip


def _token_facts(outputs: _Outputs) -> dict[str, Any]:
    tokens, corpus = outputs.get("tokenize", TokenShards), outputs.get("corpus", Corpus)
    facts: dict[str, Any] = {}
    if tokens is not None:
        facts |= {
            "num_sequences": tokens.num_rows, "num_tokens": tokens.num_tokens, "num_heldout": tokens.num_heldout,
        }  # fmt: skip
    if corpus is not None:
        total = sum(night.num_tokens for night in corpus.nights)
        facts |= {"corpus_tokens": total, "num_nights": len(corpus.nights), "num_forgotten": corpus.num_forgotten}
    return facts


def _model_facts(outputs: _Outputs) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    checkpoint = outputs.get("train", Checkpoint)
    if checkpoint is not None:
        facts["num_parameters"] = checkpoint.num_parameters
        curve = Path(checkpoint.folder()) / "curve.jsonl"
        if curve.is_file():
            lines = [json.loads(line) for line in curve.read_text().splitlines() if line.strip()]
            facts["curve"] = tuple((int(line["step"]), float(line["loss"])) for line in lines)
    scores = []
    for step in outputs.steps:
        label = step.removeprefix("evaluate-")
        card = outputs.get(step, Scorecard) if label != step else None
        if card is None:
            continue
        folder = outputs.get("export" if label == "dense" else f"compress-{label}", ModelFolder)
        size = folder.weight_bytes if folder else 0
        scores.append(Score(model=label, bits_per_byte=card.bits_per_byte, weight_bytes=size))
        facts["gzip_bits_per_byte"] = card.gzip_bits_per_byte
    facts["scores"] = tuple(scores)
    choice = outputs.get("choose", CompressionChoice)
    if choice is not None:
        facts |= {"pareto": (Path(choice.folder()) / "pareto.svg").read_text(), "choice": choice.reason}
    verdict, release = outputs.get("gate", Verdict), outputs.get("release", Release)
    report = outputs.get("report-evaluation", EvaluationReport)
    if report is not None:
        facts["evaluation"] = f"../{report.address}/data/report.html"
    if verdict is not None:
        facts["reason"] = verdict.reason
        facts["decision"] = release.decision if release is not None else verdict.decision
    if release is not None:
        facts["afterwards"] = tuple(_afterwards(outputs.workspace, release))
    return facts


def _afterwards(workspace: Workspace, release: Release) -> Iterator[str]:
    candidate = release.parent("candidate")
    about = [line for line in read_ledger(workspace) if candidate is not None and line.candidate == candidate.address]
    for line in about:
        if line.by == "hand" or line.decision == "expired":
            yield f"{line.decision} by {line.who} at {line.when}: {line.why}"
        elif line.decision == "awaiting" and line == awaiting(workspace):
            yield f"waits for approval until {line.until}"


def _prices() -> dict[str, float]:
    """Of this machine, in whatever currency the owner counts: NIGHTMILL_PRICE_CPU_HOUR, NIGHTMILL_PRICE_GPU_HOUR."""
    names = {"price_cpu_hour": "NIGHTMILL_PRICE_CPU_HOUR", "price_gpu_hour": "NIGHTMILL_PRICE_GPU_HOUR"}
    prices = {}
    for field, name in names.items():
        try:
            prices[field] = float(os.environ[name])
        except (KeyError, ValueError):
            continue
    return prices
