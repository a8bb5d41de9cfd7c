"""Files of the sources of a labelled set, and their digests. No Spark, no compiled code: a flow asks it for digests."""

from __future__ import annotations

import codecs
import hashlib
from pathlib import Path

from spark_jobs import python_environment
from spark_jobs.errors import RequestError
from spark_jobs.label_spec import LabelJobSpec, LabelSource, LabelSpec
from spark_jobs.manifests import file_sha256

COMPRESSIONS = (".gz", ".zst")  # of the kinds that are read line by line
PACKAGE = "distribution/"  # units of the Python environment that are packages
SUFFIXES = {
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "orc": (".orc",),
    "conll": (".conll", ".bio", ".iob", ".iob2", ".txt", ".tsv"),
    "squad": (".json",),
    "semeval-relations": (".txt",),
    "dialogues": (".yml", ".yaml"),
}
PACKED = ("jsonl", "csv", "conll", "semeval-relations")


def with_digests(spec: LabelSpec) -> LabelJobSpec:
    """Raises: RequestError if a source has no file."""
    digests = {str(number): digest_of(source) for number, source in enumerate(spec.sources)}
    return LabelJobSpec(**spec.model_dump(), digests=digests)


def digest_of(source: LabelSource) -> str:
    """sha256 over the names and bytes of all files that the source is read from. Raises: RequestError."""
    digest = hashlib.sha256()
    for unit in units_of(source):
        digest.update(f"{unit}\0{_sha256(source, unit)}\n".encode())
    for extra in (source.translations, source.key_file):
        if extra:
            digest.update(f"\0{file_sha256(Path(extra))}\n".encode())
    return digest.hexdigest()


def _sha256(source: LabelSource, unit: str) -> str:
    if source.kind == "package-topics":
        return hashlib.sha256(python_environment.read_bytes(unit)).hexdigest()
    return file_sha256(file_of(source, unit))


def file_of(source: LabelSource, unit: str) -> Path:
    """`unit` is empty when the source's path is itself a file."""
    return Path(source.path) / unit if unit else Path(source.path)


def units_of(source: LabelSource) -> list[str]:
    """Paths relative to the source's path, sorted; of packages, their names. Raises: RequestError."""
    if source.encoding and not _is_codec(source.encoding):
        raise RequestError(f"source {source.label!r}: encoding {source.encoding!r} is unknown; wanted one like utf-8")
    if source.kind == "package-topics":
        return [unit for unit in python_environment.list_units(1.0) if unit.startswith(PACKAGE)]
    for role, extra in (("translations", source.translations), ("key_file", source.key_file)):
        if extra and not Path(extra).is_file():
            raise RequestError(f"source {source.label!r}: {role} {extra!r} is no file; mend the source")
    return _class_files(source) if source.kind == "lines" else _files(source)


def _is_codec(name: str) -> bool:
    try:
        return bool(codecs.lookup(name))
    except (LookupError, ValueError):
        return False


def _class_files(source: LabelSource) -> list[str]:
    missing = [name for name in sorted(source.classes) if not (Path(source.path) / name).is_file()]
    if missing:
        raise RequestError(
            f"source {source.label!r}: no file {', '.join(missing)} in {source.path!r}; classes maps the name of each file to its class"
        )
    return sorted(source.classes)


def _files(source: LabelSource) -> list[str]:
    root = Path(source.path)
    if root.is_file():
        return [""]
    suffixes = SUFFIXES[source.kind]
    if not root.is_dir():
        raise RequestError(f"source {source.label!r}: path {source.path!r} does not exist; mend the source or mount it")
    found = sorted(
        file.relative_to(root).as_posix()
        for file in root.rglob("*")
        if file.is_file() and not file.name.startswith(".") and _suffix(file, source.kind) in suffixes
    )
    if not found:
        raise RequestError(f"source {source.label!r}: {source.path!r} holds no {' or '.join(suffixes)} file; mend it")
    return found


def _suffix(file: Path, kind: str) -> str:
    packed = kind in PACKED and file.suffix in COMPRESSIONS
    return (file.with_suffix("") if packed else file).suffix.lower()
