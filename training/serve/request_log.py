"""One JSON line a request: who asked (the key's name), what answered, how long. Nothing that a person wrote, no key, no address."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

CLIENT_GONE = 499  # nginx's number for an answer nobody waits for any more


@dataclass
class Entry:
    """id: made here. route: of the interface, never the path as sent. tokens are of all answers of the request."""

    id: str
    key: str = ""
    route: str = "other"
    model: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    first_token_ms: float | None = None
    ms: float = 0.0
    status: int = 0


class RequestLog:
    """path: appended to; "-": standard output; "": nothing is written."""

    def __init__(self, path: str) -> None:
        self._file: int | None = None
        if path == "-":
            self._file = sys.stdout.fileno()
        elif path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def write(self, entry: Entry) -> None:
        if self._file is None:
            return
        line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds")} | asdict(entry)
        os.write(self._file, (json.dumps(line) + "\n").encode())  # one write: lines of replicas never mix
