"""Who may ask, and how often. The file holds digests: whoever reads it has no key.

{"keys": [{"name": "team-a", "sha256": "9f86...", "requests_per_minute": 600}]}
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import struct
import time
from pathlib import Path

from pydantic import Field, ValidationError

from spark_jobs.errors import RequestError
from spark_jobs.manifests import Frozen

log = logging.getLogger("nightmill.serve")

PREFIX = "nm-"
RECHECK_S = 1.0  # a key taken out of the file is refused after so long


class Key(Frozen):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="In the log of requests; no person's name.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: float = Field(600, gt=0, le=1_000_000, description="On average; a full bucket may go at once.")


class KeyFile(Frozen):
    keys: tuple[Key, ...] = ()


def read_keys(path: Path) -> KeyFile:
    """Raises: RequestError if the file is not there, or is not of this form."""
    try:
        return KeyFile.model_validate_json(path.read_text())
    except FileNotFoundError as err:
        raise RequestError(f"{path}: no such file; make a key with `nightmill serve key NAME --keys {path}`") from err
    except ValidationError as err:
        fault = err.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise RequestError(f"{path}: {place or 'file'}: {fault['msg']}") from err


def add_key(path: Path, name: str, requests_per_minute: float) -> str:
    """A new key's text, which is shown once and kept nowhere. Raises: RequestError if the name is taken or unfit."""
    known = read_keys(path).keys if path.is_file() else ()
    if any(key.name == name for key in known):
        raise RequestError(f"{path} has a key {name!r} already; take it out of the file first, or choose another name")
    text = PREFIX + secrets.token_urlsafe(32)
    try:
        made = Key(name=name, sha256=digest_of(text), requests_per_minute=requests_per_minute)
    except ValidationError as err:
        raise RequestError(f"key {name!r}: {err.errors()[0]['msg']}") from err
    content = json.dumps(KeyFile(keys=(*known, made)).model_dump(), indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(content)
    temporary.replace(path)
    return text


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Keys:
    """The file, read again when it changes: a key taken out ends without a restart."""

    def __init__(self, path: Path) -> None:
        self._path, self._looked = path, time.monotonic()
        self._stamp = path.stat().st_mtime_ns if path.is_file() else 0
        self._keys = read_keys(path).keys

    def find(self, text: str) -> Key | None:
        """Compared with every key, in a time that does not tell how much of one was right."""
        self._refresh()
        digest, found = digest_of(text), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < RECHECK_S:
            return
        self._looked = now
        stamp = self._path.stat().st_mtime_ns if self._path.is_file() else 0
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = read_keys(self._path).keys if stamp else ()  # no file: no key is good
        except RequestError as error:
            log.error("the keys stay as they were: %s", error)


class Buckets:
    """One token bucket a key, in a file, so that all replicas of a machine draw from the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, key: Key) -> float:
        """0.0 if a request may go; else seconds until one may. Holds a minute's worth when full."""
        file = self._files.get(key.sha256)
        if file is None:
            file = os.open(self._folder / key.sha256[:16], os.O_RDWR | os.O_CREAT, 0o600)
            self._files[key.sha256] = file
        rate, full = key.requests_per_minute / 60, max(1.0, key.requests_per_minute)
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            kept, now = os.pread(file, 16, 0), time.monotonic()
            level, since = struct.unpack("<dd", kept) if len(kept) == 16 else (full, now)
            level = min(full, level + max(0.0, now - since) * rate)
            allowed = level >= 1.0
            os.pwrite(file, struct.pack("<dd", level - allowed, now), 0)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        return 0.0 if allowed else (1.0 - level) / rate
