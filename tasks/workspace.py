"""Where a pipeline's outputs live, and the record of each night.

$NIGHTMILL_HOME (default ./var)
    workspaces/<pipeline>/
        documents/ tokens/ models/ ...   published outputs, one folder each
        attempts/<step>-<key>/           work in progress, one folder a step at most
        locks/<step>-<key>.json          who is working on it
        nights/<night>.json              what that night has produced so far, by address
        ledger.jsonl                     every decision about the champion
        champion.json                    the champion now: what servers follow, written from the ledger
        fences/<number>                  empty; the decisions that were begun
        forgotten.jsonl                  every request to forget documents
    servers/                             databases and logs of Prefect and MLflow
"""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from spark_jobs.errors import DataError, RequestError
from spark_jobs.manifests import Frozen, Handle, Parent

H = TypeVar("H", bound=Handle)
PIPELINE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def home() -> Path:
    """Folder of everything Nightmill keeps: $NIGHTMILL_HOME, or ./var."""
    return Path(os.environ.get("NIGHTMILL_HOME") or "var").expanduser().resolve()


def parse_night(text: str) -> str:
    """The logical night as YYYY-MM-DD; empty means today in UTC.

    Raises: RequestError for anything else.
    """
    if not text:
        return datetime.now(UTC).date().isoformat()
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError as err:
        raise RequestError(f"night {text!r}: wanted a date like 2026-11-25, or nothing for tonight") from err


class NightRecord(Frozen):
    """What a night has produced so far. Rewritten whole, by rename, after each step. retired: steps whose outputs maintenance
    has removed since."""

    night: str
    outputs: dict[str, Parent] = Field(default_factory=dict)
    retired: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workspace:
    """One pipeline's folder. Cheap to build; makes nothing until something is written."""

    root: Path

    @classmethod
    def of(cls, pipeline: str) -> Workspace:
        if not PIPELINE_NAME.fullmatch(pipeline):
            raise RequestError(f"name {pipeline!r}: wanted lower-case letters, digits and dashes, at most 63")
        return cls(home() / "workspaces" / pipeline)

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def forgotten(self) -> Path:
        return self.root / "forgotten.jsonl"

    def at(self, address: str) -> Path:
        """Raises: RequestError if the address leads out of the workspace: some come from parameters."""
        if address.startswith("/") or ".." in address.split("/"):
            raise RequestError(
                f"address {address!r} leads out of {self.root}; wanted one like models/export-3f9a1c0b77d2e415"
            )
        return self.root / address

    def attempt(self, step_key: str) -> Path:
        return self.root / "attempts" / step_key

    def lock(self, step_key: str) -> Path:
        return self.root / "locks" / f"{step_key}.json"

    def record(self, night: str) -> NightRecord:
        path = self.root / "nights" / f"{night}.json"
        if not path.is_file():
            return NightRecord(night=night)
        return NightRecord.model_validate_json(path.read_text())

    def remember(self, night: str, step: str, handle: Handle) -> None:
        """Note in the night's record where a step's output is."""
        record = self.record(night)
        entry = Parent(role=step, address=handle.address, digest=handle.digest)
        if record.outputs.get(step) == entry:
            return
        retired = tuple(name for name in record.retired if name != step)
        self._write(NightRecord(night=night, outputs=record.outputs | {step: entry}, retired=retired))

    def retire(self, night: str, addresses: set[str]) -> None:
        """Note in the night's record that outputs at these addresses are gone."""
        record = self.record(night)
        gone = {step for step, entry in record.outputs.items() if entry.address in addresses}
        if gone:
            left = {step: entry for step, entry in record.outputs.items() if step not in gone}
            self._write(NightRecord(night=night, outputs=left, retired=tuple(sorted({*record.retired, *gone}))))

    def _write(self, record: NightRecord) -> None:
        write_atomic(self.root / "nights" / f"{record.night}.json", record.model_dump_json(indent=1) + "\n")

    def output(self, night: str, step: str, handle: type[H], producer: str) -> H:
        """The output of an earlier step of this night. `producer` is the deployment that makes it.

        Raises: RequestError if the night has none yet.
        """
        record = self.record(night)
        entry = record.outputs.get(step)
        if entry is None and step in record.retired:
            raise RequestError(
                f"night {night} of {self.name}: maintenance has removed the output of step {step}; run that night again to make "
                "it anew"
            )
        if entry is None:
            raise RequestError(
                f"night {night} of {self.name} has no output of step {step} in {self.root}; run {producer} for that night first"
            )
        found = handle.load(self.at(entry.address))
        if found.digest != entry.digest:
            raise DataError(f"{found.uri}: another output than night {night} recorded; run {producer} again")
        return found

    def nights(self) -> list[str]:
        """Nights with a record, oldest first."""
        return sorted(p.stem for p in (self.root / "nights").glob("*.json"))

    def nights_before(self, night: str) -> list[str]:
        """Nights with a record, oldest first, strictly before `night`."""
        return sorted(p.stem for p in (self.root / "nights").glob("*.json") if p.stem < night)


def write_atomic(path: Path, text: str) -> None:
    """Replace a small file so that a reader sees the old or the new text, never a part; survives a power cut.

    Where it fails (a full disk) nothing of it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, record: dict[str, object]) -> None:
    """Append one JSON line in a single write, so that two writers never mix.

    Raises: OSError where the disk has room for a part of it only: the system then writes that part and calls it a success.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n").encode()
    with path.open("ab", buffering=0) as stream:
        written = stream.write(line)
        if written < len(line):
            stream.truncate(stream.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(stream.fileno())
