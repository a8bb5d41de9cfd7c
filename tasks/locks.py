"""One lock a step: an owner, a heartbeat, and a rule for taking over from the dead.

The lock is a small JSON file made with O_EXCL, so that on a shared disk only one of two runs gets it. Its owner rewrites
the file's time every few seconds. A lock is dead when its process is gone (same host) or its heartbeat is older than
`TAKE_OVER_S` (another host). Whoever takes over replaces the file by rename and looks again whether it won.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from spark_jobs.errors import StepBusy

HEARTBEAT_S = 5.0
TAKE_OVER_S = 60.0


class Lock:
    """A held lock. `still_mine` is the fencing check made right before an output is published."""

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.token = token
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lock {path.stem}", daemon=True)
        self._thread.start()

    def still_mine(self) -> bool:
        owner = _read(self.path)
        return owner is not None and owner["token"] == self.token

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.still_mine():
            self.path.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(FileNotFoundError):
                os.utime(self.path)


@contextmanager
def held(path: Path, wait_s: float = 0.0) -> Iterator[Lock]:
    """Hold the lock at `path`, waiting up to `wait_s` for a live owner to let go.

    Raises: StepBusy naming the owner.
    """
    deadline = time.monotonic() + wait_s
    while (lock := _try(path)) is None:
        if time.monotonic() >= deadline:
            raise StepBusy(f"{path.stem}: {_describe(path)} is working on it; wait for that run or cancel it")
        time.sleep(0.5)
    try:
        yield lock
    finally:
        lock.release()


def _try(path: Path) -> Lock | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    process = psutil.Process()
    body = {"token": token, "host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}
    mine = path.with_name(f".{path.name}.{token}")
    try:
        mine.write_text(json.dumps(body))
        os.link(mine, path)  # fails if it exists: the same promise as O_EXCL, and the file is never seen half written
        return Lock(path, token)
    except FileExistsError:
        pass
    finally:
        mine.unlink(missing_ok=True)
    if not _is_dead(path):
        return None
    return _take_over(path, token, body)


def _take_over(path: Path, token: str, body: dict[str, object]) -> Lock | None:
    """Replace a dead lock. Two may try: a claim file made with O_EXCL lets one of them do it."""
    claim = path.with_name(f".{path.name}.claim")
    with suppress(FileNotFoundError):
        if time.time() - claim.stat().st_mtime > TAKE_OVER_S:
            claim.unlink()
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return None
    try:
        if not _is_dead(path):
            return None
        fresh = path.with_name(f".{path.name}.{token}")
        fresh.write_text(json.dumps(body))
        fresh.replace(path)
        return Lock(path, token)
    finally:
        claim.unlink()


def is_live(path: Path) -> bool:
    """Whether there is a lock at `path`, and its owner lives."""
    return path.exists() and not _is_dead(path)


def _is_dead(path: Path) -> bool:
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    owner = _read(path)
    if owner is None or owner["host"] != socket.gethostname():
        return age_s > TAKE_OVER_S
    return not is_running(owner["pid"], owner["started"])


def is_running(pid: int, started: float) -> bool:
    """Whether the process that had this pid at that start time (seconds since the epoch) still lives."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _describe(path: Path) -> str:
    owner = _read(path)
    return f"process {owner['pid']} on {owner['host']}" if owner else "another run"
