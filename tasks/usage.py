"""CPU-seconds and peak memory of a process tree while a step runs, sampled twice a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

from spark_jobs.manifests import Frozen

INTERVAL_S = 0.5


class Usage(Frozen):
    """Cost of one step. peak_mb is resident memory of all processes together, in MiB. gpu_seconds: seconds times accelerators
    occupied; cost: in the currency of `tasks.prices`, 0 without prices."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cost: float = 0.0
    peak_mb: float = 0.0


class Meter:
    """Measures from `with` to its end: `with Meter(child.family) as meter: ...; meter.usage`."""

    def __init__(self, family: Callable[[], list[psutil.Process]]) -> None:
        self._family = family
        self._cpu_by_pid: dict[int, tuple[float, float]] = {}
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="usage", daemon=True)
        self.usage = Usage()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        cpu = sum(last - first for first, last in self._cpu_by_pid.values())
        self.usage = Usage(
            seconds=round(time.monotonic() - self._started, 2),
            cpu_seconds=round(cpu, 2),
            peak_mb=round(self._peak / 2**20, 1),
        )

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        resident = 0
        first_look = not self._cpu_by_pid
        for process in self._family():
            with suppress(psutil.Error):
                times = process.cpu_times()
                now = times.user + times.system
                # a process born during the step counts from zero, one that was there before counts from here
                first = self._cpu_by_pid.get(process.pid, (now if first_look else 0.0, now))[0]
                self._cpu_by_pid[process.pid] = (first, now)
                resident += process.memory_info().rss
        self._peak = max(self._peak, resident)
