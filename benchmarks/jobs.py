"""Runs single data jobs and publishes their outputs as the step engine would, without locks, keys and servers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import xxhash
from pyarrow import parquet
from pydantic import BaseModel

from spark_jobs.manifests import MANIFEST, Corpus, Documents, FileEntry, Handle, NightData, Parent, file_sha256
from spark_jobs.requests import Outcome, Request
from spark_jobs.run import run_request
from spark_jobs.schemas import DOCUMENTS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

H = TypeVar("H", bound=Handle)
KINDS = {"string": pa.string(), "int": pa.int32(), "double": pa.float64()}


def publish_texts(root: Path, night: str, texts: list[str]) -> Documents:
    """A folder of documents as ingest leaves it; the origin is the place in the list."""
    out = root / Documents.kind / f"ingest-{night}"
    (out / "data").mkdir(parents=True)
    ids = [xxhash.xxh3_128_hexdigest(text.encode()) for text in texts]
    order = sorted(range(len(texts)), key=lambda place: (ids[place], place))
    columns: dict[str, list[Any]] = {
        "doc_id": [ids[place] for place in order], "text": [texts[place] for place in order],
        "source": ["text"] * len(texts), "origin": [f"{place:09d}" for place in order], "priority": [10] * len(texts),
        "language": [""] * len(texts), "language_score": [0.0] * len(texts),
        "quality_score": [None] * len(texts),
    }  # fmt: skip
    schema = pa.schema([(name, KINDS[kind]) for name, kind in DOCUMENTS.items()])
    parquet.write_table(pa.table({name: columns[name] for name in DOCUMENTS}, schema), out / "data/part-00000.parquet")
    return publish(Documents, out, "ingest", night, Outcome(num_rows=len(texts), format="parquet"))


def run_job(
    spark: SparkSession, root: Path, kind: type[H], job: str, spec: BaseModel, night: str, inputs: dict[str, Handle]
) -> H:
    out = root / kind.kind / f"{job}-{night}"
    uris = {role: handle.uri for role, handle in inputs.items()}
    request = Request(job=job, spec=spec.model_dump(mode="json"), inputs=uris, out=str(out), night=night)
    outcome = run_request(spark, request)
    shutil.rmtree(out / "scratch", ignore_errors=True)
    return publish(kind, out, job, night, outcome, request.spec)


def publish(kind: type[H], out: Path, step: str, night: str, outcome: Outcome, spec: dict[str, Any] | None = None) -> H:
    files = tuple(
        FileEntry(path=str(path.relative_to(out)), size_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    )
    fields = outcome.model_dump(exclude={"fields"}) | outcome.fields
    handle = kind(step=step, key=night, night=night, files=files, spec=spec or {}, code={}, libraries={}, **fields)
    (out / MANIFEST).write_text(handle.canonical())
    return kind.load(out)


def publish_history(root: Path, night: str, *nights: Documents) -> Corpus:
    """A corpus snapshot of which only what dedup reads is real."""
    data = [
        NightData(
            night=documents.night, ingested=_nothing("ingested"), tokens=_nothing("tokens"),
            unique=Parent(role="unique", address=documents.address, digest=documents.digest),
            num_sequences=0, num_tokens=0, num_heldout=0,
        )
        for documents in nights
    ]  # fmt: skip
    out = root / Corpus.kind / f"corpus-{night}"
    out.mkdir(parents=True)
    fields = {"nights": tuple(data), "tokenizer": _nothing("tokenizer"), "seq_len": 8, "vocab_size": 300}
    return publish(Corpus, out, "corpus", night, Outcome(num_rows=0, format="addresses", fields=fields))


def _nothing(role: str) -> Parent:
    return Parent(role=role, address="", digest="")
