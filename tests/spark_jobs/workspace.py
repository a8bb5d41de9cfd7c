"""A small engine for tests: runs a job, checks what the step engine checks, and publishes what it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import orc, parquet

from spark_jobs.manifests import MANIFEST, FileEntry, Handle, Parent, file_sha256
from spark_jobs.requests import Request
from spark_jobs.run import run_request

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class Workspace:
    """Runs jobs and publishes their outputs, checking what the step engine checks."""

    def __init__(self, spark: SparkSession, root: Path) -> None:
        self.spark = spark
        self.root = root

    def run(self, kind: type[Handle], job: str, spec: Any, night: str = "n1", **inputs: Handle) -> Any:
        out = self.root / kind.kind / f"{job}-{night}"
        shutil.rmtree(out, ignore_errors=True)
        request = Request(
            job=job,
            spec=spec.model_dump(mode="json"),
            inputs={role: handle.uri for role, handle in inputs.items()},
            out=str(out),
            night=night,
        )
        outcome = run_request(self.spark, request)
        shutil.rmtree(out / "scratch", ignore_errors=True)
        if "in" in outcome.counts:
            rejected = sum(count for name, count in outcome.counts.items() if name.startswith("reject."))
            assert outcome.counts["in"] == outcome.counts["out"] + rejected
            assert outcome.counts["out"] == outcome.num_rows
            assert len(read_rows(out, "rejects")) == rejected
        if outcome.format in ("parquet", "orc"):
            assert len(read_rows(out, "data")) == outcome.num_rows
        parents = tuple(Parent(role=role, address=h.address, digest=h.digest) for role, h in inputs.items())
        fields = outcome.model_dump(exclude={"fields"}) | outcome.fields
        handle = kind(
            step=job,
            key=night,
            night=night,
            files=files_of(out),
            spec=request.spec,
            code={},
            libraries={},
            parents=parents,
            **fields,
        )
        (out / MANIFEST).write_text(handle.canonical())
        return kind.load(out)


def files_of(out: Path) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(path=str(p.relative_to(out)), size_bytes=p.stat().st_size, sha256=file_sha256(p))
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    )


def read_rows(out: Path | str, part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted((Path(out) / part).iterdir()):
        rows += (parquet.read_table(path) if path.suffix == ".parquet" else orc.read_table(path)).to_pylist()
    return rows


def digest_of(out: Path | str) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in files_of(Path(out))}


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path
