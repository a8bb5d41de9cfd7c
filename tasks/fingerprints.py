"""What code and which libraries can change a step's result.

The code of a step is its entry module and every module of our packages that it imports, found by reading the source,
not by importing it. A module's digest is of its syntax tree without docstrings, so a new comment re-runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("spark_jobs", "training")


def code_digests(entry: str) -> dict[str, str]:
    """Module name -> 16 hex digits, for `entry` and all it imports (transitively) from our two working packages."""
    found: dict[str, str] = {}
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        digest, imported = _read_module(module)
        found[module] = digest
        waiting.extend(imported)
    return dict(sorted(found.items()))


@cache
def library_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions, and the interpreter's minor version, which decides hashing and Unicode tables."""
    versions = {name: importlib.metadata.version(name) for name in sorted(names)}
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}"} | versions


@cache
def _read_module(module: str) -> tuple[str, tuple[str, ...]]:
    path = _source_of(module)
    assert path is not None, f"{module} is not a module of {PACKAGES}"
    tree = ast.parse(path.read_text(), filename=str(path))
    imported = tuple(name for name in _imports(tree) if _source_of(name) is not None)
    _strip_docstrings(tree)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], imported


@cache
def _source_of(module: str) -> Path | None:
    if module.split(".")[0] not in PACKAGES:
        return None
    package = find_spec(module.split(".")[0])
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]).joinpath(*module.split(".")[1:])
    file = path.with_suffix(".py")
    return file if file.is_file() else None


def _imports(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def _strip_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
