"""`nightmill serve`: replicas behind one port, watched. A dead one is started again; SIGTERM lets answers end."""

from __future__ import annotations

import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from spark_jobs.errors import JobCrashed, RequestError
from tasks.child import Child
from tasks.ledger import champion_now
from tasks.workspace import Workspace, home
from training.champion_pointer import POINTER, read_pointer
from training.serve.plan import LISTEN_FD, PLAN, READY, Plan

BACKLOG = 2048  # connections that wait while all replicas are busy
FIRST_START_S = 600.0  # loading a model from a slow disk
LOOK_S = 0.2
OWN_MESSAGE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (WARNING|ERROR|CRITICAL) ")
REQUEST = '{"at": '  # how a line of the log of requests begins
PATIENCE_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before a replica that keeps dying is started again


class Replica:
    """One place in the row of replicas, and the process in it."""

    def __init__(self, start: Callable[[Callable[[str], None]], Child]) -> None:
        self._start = start
        self.deaths, self.next_start = 0, 0.0
        self.ready = False
        self.child = start(self._heard)

    def _heard(self, line: str) -> None:
        """What is neither a request nor a message of ours (libraries talk while they load) stays in the replica's log."""
        before, request, rest = line.partition(REQUEST)
        if line == READY:
            self.ready, self.deaths = True, 0
        elif request and "{" not in before:  # a library may have left half a line before it
            print(request + rest, flush=True)  # noqa: T201 --log -
        elif OWN_MESSAGE.match(line):
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    def look(self, now: float) -> int:
        """Start it again if it died and it is time. Returns the pid of one just found dead, else 0."""
        if self.child.is_alive():
            return 0
        if not self.next_start:
            self.ready = False
            self.next_start = now + PATIENCE_S[min(self.deaths, len(PATIENCE_S) - 1)]
            self.deaths += 1
            return self.child.pid
        if now >= self.next_start:
            self.next_start = 0.0
            self.child = self._start(self._heard)
        return 0


def check_champion(workspace: Workspace) -> None:
    """Raises: RequestError if there is no champion to serve, or only the ledger knows of it."""
    if read_pointer(workspace.root) is not None:
        return
    if champion_now(workspace) is not None:
        raise RequestError(f"{workspace.root / POINTER} is missing; write it with `nightmill promote PRESET --repair`")
    raise RequestError(f"pipeline {workspace.name} has no champion yet in {workspace.root}; `nightmill run` it first")


def listen(host: str, port: int) -> socket.socket:
    """Raises: RequestError if the port is taken or the address is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as err:
        raise RequestError(f"cannot listen on {host} port {port}: {err.strerror}; choose another --port") from err


def serve(plan: Plan, listener: socket.socket, say: Callable[[str], None], end: Event) -> None:
    """Until `end` is set or KeyboardInterrupt.

    Raises: JobCrashed with the last words, if no replica ever came up.
    """
    folder = Path(tempfile.mkdtemp(prefix="nightmill-serve-"))
    metrics = folder / "metrics"
    metrics.mkdir()
    environment = {
        PLAN: plan.model_copy(update={"run_folder": str(folder)}).model_dump_json(),
        LISTEN_FD: str(listener.fileno()),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "HF_HUB_OFFLINE": "1",  # a model is a folder here; nothing is fetched
    }
    logs = home() / "serve"

    def start_in(place: int) -> Callable[[Callable[[str], None]], Child]:
        argv = [sys.executable, "-m", "training.serve.replica"]
        log = logs / f"{socket.gethostname()}-{listener.getsockname()[1]}-{place}.log"
        return lambda heard: Child(argv, log, environment, heard, (listener.fileno(),))

    row = [Replica(start_in(place)) for place in range(plan.replicas)]
    try:
        _wait_for_first(row, end)
        if not end.is_set():
            say(f"{plan.replicas} replica{'s' * (plan.replicas > 1)} on http://{_name_of(listener)}")
        while not end.wait(LOOK_S):
            for replica in row:
                if dead := replica.look(time.monotonic()):
                    say(f"replica {dead} died; it is started again")
                    _forget_gauges(metrics, dead)
    finally:
        with ThreadPoolExecutor(len(row)) as pool:
            list(pool.map(lambda replica: replica.child.stop(plan.spec.drain_s + 5), row))
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_first(row: list[Replica], end: Event) -> None:
    deadline = time.monotonic() + FIRST_START_S
    while not end.wait(LOOK_S / 4):
        if any(replica.ready for replica in row):
            return
        if not any(replica.child.is_alive() for replica in row):
            child = row[0].child
            child.stop(0)
            words = child.last_lines(6)
            if child.process.returncode == 2:
                raise RequestError(words.removeprefix("nightmill: "))
            raise JobCrashed(f"no replica came up; its last words:\n{words}\nall of them: {child.log}")
        if time.monotonic() > deadline:
            raise JobCrashed(f"no replica was ready within {FIRST_START_S:.0f} s; see {row[0].child.log}")


def _forget_gauges(metrics: Path, pid: int) -> None:
    """A dead replica runs nothing; what it counted stays counted."""
    for path in metrics.glob(f"gauge_live*_{pid}.db"):
        path.unlink()


def _name_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
