"""The zero-download corpus: documentation that this Python installation carries, as units named by path.

distribution/<name>   long description in the package's metadata
module/<path>.py      docstrings of a standard-library module and of its classes and functions, read without importing it
topic/<name>          a text of `pydoc_data.topics` (the language reference)
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import xxhash

LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "__pycache__"}


def list_units(share: float) -> list[str]:
    """Paths, sorted, of the units whose hash in [0, 1) is below `share`."""
    names = [*_distributions(), *_modules(), *(f"topic/{name}" for name in _topics())]
    return sorted(name for name in names if xxhash.xxh3_64_intdigest(name.encode()) < share * 2**64)


def read_bytes(path: str) -> bytes:
    """The unit as it lies on disk; its hash tells whether it was seen before. Raises: OSError if it is gone."""
    kind, _, name = path.partition("/")
    if kind == "distribution":
        return _metadata(name).encode(errors="surrogateescape")
    if kind == "module":
        return (_library() / name).read_bytes()
    return _topics()[name].encode()


def read_text(path: str) -> str:
    """The unit's document. Raises: OSError if it is gone, SyntaxError if a module cannot be parsed."""
    kind, _, name = path.partition("/")
    if kind == "distribution":
        headers, _, body = _metadata(name).partition("\n\n")
        return body.strip() or _folded_header(headers, "Description")
    if kind == "module":
        return "\n\n".join(_docstrings((_library() / name).read_bytes()))
    return _topics()[name]


def _distributions() -> set[str]:
    found = set()
    for distribution in importlib.metadata.distributions():
        # `distribution.metadata` would parse the long description too, which takes seconds for a few hundred
        name = re.search(r"^Name: *(.+)$", distribution.read_text("METADATA") or "", re.MULTILINE)
        if name:
            found.add(f"distribution/{_canonical(name[1].strip())}")
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _metadata(name: str) -> str:
    try:
        return importlib.metadata.distribution(name).read_text("METADATA") or ""
    except importlib.metadata.PackageNotFoundError as err:
        raise FileNotFoundError(f"distribution {name} is no longer installed") from err


def _folded_header(headers: str, name: str) -> str:
    """The value of a header whose continuation lines are indented."""
    found = re.search(rf"^{name}: (.*(?:\n[ \t].*)*)", headers, re.MULTILINE)
    return re.sub(r"\n[ \t]{1,8}\|?", "\n", found[1]).strip() if found else ""


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> Iterator[str]:
    for folder, folders, names in os.walk(_library()):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in names:
            if name.endswith(".py"):
                yield f"module/{Path(folder, name).relative_to(_library()).as_posix()}"


def _docstrings(source: bytes) -> Iterator[str]:
    if b'"""' not in source and b"'''" not in source:
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


@cache
def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics
