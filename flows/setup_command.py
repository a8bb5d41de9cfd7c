"""`nightmill setup`: what an installation prepares once, so that every later start is quick. `make install` calls it."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from tasks.machine import setup_folder


def setup(_arguments: argparse.Namespace) -> int:
    """Make what is missing: a Java runtime, Spark's class archive, migrated database templates, compiled kernels."""
    console = Console()
    folder = setup_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("Java", _java), ("Spark class archive", _class_archive), ("database templates", _templates)):
        started = time.monotonic()
        made = make(folder)
        console.print(f"  {name:<22} {made}  ({time.monotonic() - started:.0f} s)")
    return 0


def _java(folder: Path) -> str:
    from spark_jobs.java import find_java

    return str(find_java(folder))


def _class_archive(folder: Path) -> str:
    archive = folder / "spark.jsa"
    if not archive.is_file():
        subprocess.run([sys.executable, "-m", "spark_jobs.session", "--make-cds", str(archive)], check=True)
    return str(archive)


def _templates(folder: Path) -> str:
    from tasks.server_databases import make_templates

    make_templates(folder)
    return str(folder)
