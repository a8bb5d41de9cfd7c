"""From an attempt folder to a published output: verify, write the manifest last, rename once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from spark_jobs.errors import DataError, StepBusy
from spark_jobs.manifests import MANIFEST, REPORT, FileEntry, Handle, file_sha256
from spark_jobs.requests import Outcome
from tasks.locks import Lock
from tasks.steps import Step
from tasks.usage import Usage
from tasks.workspace import Workspace

H = TypeVar("H", bound=Handle)
SCRATCH = "scratch"


def publish(step: Step[H], workspace: Workspace, attempt: Path, outcome: Outcome, usage: Usage, lock: Lock) -> H:
    """Make `attempt` the step's output.

    Raises: DataError if what the job wrote is not what it says it wrote; StepBusy if the lock was lost to another run.
    """
    _keep_curves(step, workspace, attempt)
    shutil.rmtree(attempt / SCRATCH, ignore_errors=True)
    handle = _describe(step, attempt, outcome)
    _write_durable(attempt / MANIFEST, handle.canonical())
    (attempt / REPORT).write_text(usage.model_dump_json() + "\n")
    if not lock.still_mine():
        raise StepBusy(
            f"{step.name}: another run took over while this one was working; its output is the one that counts"
        )
    _rename_into_place(attempt, workspace.at(handle.address))
    return step.handle.load(workspace.at(handle.address))


def _keep_curves(step: Step[H], workspace: Workspace, attempt: Path) -> None:
    """Move TensorBoard's files out of the scratch folder: they hold times, so they cannot be part of the output."""
    written = attempt / SCRATCH / "tensorboard"
    if written.is_dir():
        kept = curves_folder(workspace.root, step.night, attempt.name)
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(written, kept)


def curves_folder(root: Path, night: str, output: str) -> Path:
    """Where TensorBoard finds curves and traces of the step whose output folder is called `output`."""
    return root / "logs" / night / "tensorboard" / output


def _describe(step: Step[H], attempt: Path, outcome: Outcome) -> H:
    files = tuple(
        FileEntry(
            path=str(path.relative_to(attempt)),
            size_bytes=path.stat().st_size,
            sha256=file_sha256(path),
            num_rows=count_rows(path),
        )
        for path in sorted(attempt.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, REPORT)
    )
    _check_counts(step.name, outcome, files)
    identity = step.identity()
    try:
        return step.handle(
            step=step.name,
            key=step.key(),
            night=step.night,
            format=outcome.format,
            num_rows=outcome.num_rows,
            files=files,
            columns=outcome.columns,
            counts=outcome.counts,
            spec=identity["spec"],
            code=identity["code"],
            libraries=identity["libraries"],
            parents=step.parents,
            **outcome.fields,
        )
    except ValidationError as err:
        raise DataError(f"{step.name}: its job described the output wrongly: {err}") from err


def _check_counts(name: str, outcome: Outcome, files: tuple[FileEntry, ...]) -> None:
    if outcome.format in ("parquet", "orc"):
        written = sum(f.num_rows or 0 for f in files if f.path.startswith("data/"))
        if written != outcome.num_rows:
            raise DataError(
                f"{name}: job says {outcome.num_rows} rows, its files hold {written}; run again, and report it"
            )
    if "in" in outcome.counts:
        rejected = sum(count for reason, count in outcome.counts.items() if reason.startswith("reject."))
        if outcome.counts["in"] != outcome.counts["out"] + rejected:
            raise DataError(
                f"{name}: {outcome.counts['in']} rows in, {outcome.counts['out']} out, {rejected} rejected: rows were lost; report it"
            )


def count_rows(path: Path) -> int | None:
    """Rows of a Parquet or ORC file from its footer; None for any other file. Raises: DataError if unreadable."""
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return int(parquet.read_metadata(path).num_rows)
        if path.suffix == ".orc":
            from pyarrow import orc

            return int(orc.ORCFile(path).nrows)
    except (OSError, ValueError) as err:
        raise DataError(f"{path}: not a readable {path.suffix[1:]} file ({err}); run the step again") from err
    return None


def _rename_into_place(attempt: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if (
        target.exists()
    ):  # damaged, or it would have been a hit: out of the way first, so that readers never see a mixture
        broken = attempt.with_name(attempt.name + ".damaged")
        shutil.rmtree(broken, ignore_errors=True)
        target.rename(broken)
        shutil.rmtree(broken)
    attempt.rename(target)
    _sync_folder(target.parent)


def _write_durable(path: Path, text: str) -> None:
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
