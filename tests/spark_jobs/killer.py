"""Kills Python workers of Spark while they work on a task."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

DAEMON = "spark_jobs.daemon"  # in the command line of the daemon, and of the workers that it forks
BUSY_S = 0.02  # of processor time between two looks


class WorkerKiller(threading.Thread):
    """From `start` on, SIGKILL to a worker that is at work below `root`, again and again until `lost()`: a task was lost."""

    def __init__(self, roots: Callable[[], list[psutil.Process]], lost: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self._roots, self._lost = roots, lost
        self._stopped = threading.Event()
        self._spent: dict[int, float] = {}

    def run(self) -> None:
        while not self._stopped.wait(0.01):
            victim = self._busy_worker()
            if victim is None:
                continue
            with suppress(psutil.NoSuchProcess):
                victim.kill()
            time.sleep(0.5)  # for the loss to be noticed: a task may be lost four times
            if self._lost():
                return

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def _busy_worker(self) -> psutil.Process | None:
        for process in (worker for root in self._roots() for worker in workers_below(root)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                spent = times.user + times.system
                if spent - self._spent.setdefault(process.pid, spent) >= BUSY_S:
                    return process
        return None


def workers_below(root: psutil.Process) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    with suppress(psutil.Error):
        for process in root.children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                parent = process.parent()
                if parent is not None and DAEMON in process.cmdline() and DAEMON in parent.cmdline():
                    found.append(process)
    return found
