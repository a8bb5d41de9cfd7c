"""Files of the two folders a quality classifier learns from. No Spark, no compiled code: a flow asks it for digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spark_jobs.errors import RequestError
from spark_jobs.manifests import file_sha256

SUFFIXES = (".txt", ".md", ".jsonl")
COMPRESSIONS = (".gz", ".zst")


def kind_of(file: Path) -> str:
    """The suffix that tells what a file holds, without that of a compression; empty if it is none of SUFFIXES."""
    name = file.with_suffix("") if file.suffix in COMPRESSIONS else file
    return name.suffix if name.suffix in SUFFIXES else ""


def files_of(role: str, path: str) -> list[Path]:
    """In the order of their paths. role: `good` or `bad`. Raises: RequestError if there is no file."""
    root = Path(path)
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    files = [file for file in files if kind_of(file)]
    if not files:
        raise RequestError(
            f"clean.classifier.{role}={path!r}: no {', '.join(SUFFIXES)} file there (also as {' or '.join(COMPRESSIONS)}); "
            "name a folder of examples, or a file"
        )
    return files


def digest_of(role: str, path: str) -> str:
    """sha256 over the names and bytes of the files: a changed folder is another request. Raises: RequestError."""
    root, digest = Path(path), hashlib.sha256()
    for file in files_of(role, path):
        name = file.relative_to(root).as_posix() if file != root else file.name
        digest.update(f"{name}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()
