"""Child processes that never outlive us and never go silent.

Each child leads its own session, so one signal reaches its whole group; asks the kernel to be killed when we die; carries
a token in its environment by which descendants that left the group (torch ranks lead sessions of their own) are found and
killed; and has its output pumped line by line to a callback and kept in a file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from spark_jobs.errors import JobCrashed
from tasks.locks import is_running
from tasks.redaction import redact

GRACE_S = 10.0  # between SIGTERM and SIGKILL; below Prefect's own 30 s, so that we finish first
TOKEN = "NIGHTMILL_CHILD"
OWNER = "NIGHTMILL_OWNER"
PR_SET_PDEATHSIG = 1

# The kernel sends the parent-death signal when the *thread* that forked ends, so one thread forks every child.
_launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="child-launcher")
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """A running child process.

    argv: program and arguments, never a shell. environment: added to ours. log: file that keeps all it prints.
    on_line: called with each line, in a thread of this object. pass_fds: descriptors the child inherits.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.token = uuid.uuid4().hex
        self.name = " ".join(argv[1:4]) or argv[0]
        self.log = log
        self.tail: deque[str] = deque(maxlen=40)
        self._on_line = on_line
        log.parent.mkdir(parents=True, exist_ok=True)
        env = os.environ | (environment or {}) | {TOKEN: self.token, OWNER: _owner(), "PYTHONUNBUFFERED": "1"}
        self.process = _launcher.submit(_start, argv, env, tuple(pass_fds)).result()
        self._pump = threading.Thread(target=self._pump_lines, name=f"log {self.name}", daemon=True)
        self._pump.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, grace_s: float = GRACE_S) -> None:
        """SIGTERM to the group, SIGKILL after `grace_s`, then every descendant that is left. Safe to call twice.

        Raises: JobCrashed naming the pids if something survives even SIGKILL (a process stuck in the kernel).
        """
        if self.process.stdin:
            with suppress(OSError):
                self.process.stdin.close()
        family = self.family()
        if self.is_alive():
            _signal_group(self.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        _signal_group(self.pid, signal.SIGKILL)
        survivors = kill_all({*family, *marked(TOKEN, lambda value: value == self.token)})
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self._pump.join(5)
        if survivors:
            raise JobCrashed(
                f"{self.name}: processes {survivors} do not die even by SIGKILL (stuck in the kernel?); look at them, then run again"
            )

    def family(self) -> list[psutil.Process]:
        """The child and all its descendants that are still linked to it."""
        try:
            top = psutil.Process(self.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def last_lines(self, count: int = 15) -> str:
        return "\n".join(list(self.tail)[-count:])

    def _pump_lines(self) -> None:
        """Reads to the end even where the log cannot be written (a full disk): a pipe that nobody empties stops the child for good."""
        assert self.process.stdout is not None
        with _opened(self.log) as kept:
            for raw in self.process.stdout:
                line = redact(raw.decode(errors="replace").rstrip("\n"))
                with suppress(OSError):
                    kept.write((line + "\n").encode(errors="replace"))
                self.tail.append(line)
                if self._on_line:
                    self._on_line(line)


def _opened(log: Path) -> BinaryIO:
    """The log, each line written at once; nothing is kept where the disk has no room even for its name."""
    try:
        return log.open("ab", buffering=0)
    except OSError:
        return Path(os.devnull).open("ab", buffering=0)


def sweep_orphans() -> list[int]:
    """Kill children of Nightmill runs whose owner is dead, on this machine and under this home. Returns their pids."""
    home = os.environ.get("NIGHTMILL_HOME", "")

    def orphaned(value: str) -> bool:
        pid, started, owner_home = value.split(":", 2)
        return owner_home == home and not is_running(int(pid), float(started))

    orphans = marked(OWNER, orphaned)
    kill_all(set(orphans))
    return [process.pid for process in orphans]


def marked(variable: str, accept: Callable[[str], bool]) -> list[psutil.Process]:
    """Processes whose environment has `variable` with an accepted value; those we may not look into are left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError):
            value = process.environ().get(variable)
            if value is not None and process.pid != os.getpid() and accept(value):
                found.append(process)
    return found


def kill_all(processes: set[psutil.Process], wait_s: float = 5.0) -> list[int]:
    """SIGKILL each; returns the pids still there after `wait_s` seconds."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(processes, timeout=wait_s)
    return sorted(process.pid for process in alive if process.status() != psutil.STATUS_ZOMBIE)


def _owner() -> str:
    return f"{os.getpid()}:{psutil.Process().create_time()}:{os.environ.get('NIGHTMILL_HOME', '')}"


def _start(argv: Sequence[str], env: dict[str, str], pass_fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def die_with_parent() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died between fork and prctl
                os._exit(1)

    return subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        pass_fds=pass_fds,
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  only system calls inside, made by the one launcher thread
    )


def _signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
