"""MLflow from the flow process: a parent run a night, a child run a step, live metrics while training.

Everything goes through one background thread, as small records that name runs by key, not by MLflow's id. So importing
mlflow (3 s) delays nobody; a dead server costs telemetry, never a step; and what could not be delivered is kept in
`<workspace>/telemetry.jsonl` and replayed by the next run, whose night is then marked `nightmill.telemetry_gap`.

A run is found again by its tag `nightmill.key`: a night or a step done twice is one run in MLflow.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from tasks.tracking_store import Record, Store, now_ms
from tasks.workspace import Workspace, write_atomic

Status = Literal["FINISHED", "FAILED", "KILLED"]

TELEMETRY = "telemetry.jsonl"
FLUSH_S = 1.0  # metrics are sent together at most this often
RETRY_S = 5.0  # pause after a failed delivery
DRAIN_S = 20.0  # at the end of a night, the longest wait for a slow server


class Tracking:
    """Delivers records to one experiment (the pipeline's). Thread-safe; never raises."""

    def __init__(self, uri: str, workspace: Workspace, artifacts: Path) -> None:
        """artifacts: folder for what is logged, e.g. $NIGHTMILL_HOME/servers/mlartifacts."""
        self._uri = uri
        self._workspace = workspace
        self._artifacts = artifacts / workspace.name
        self._records: queue.Queue[Record | None] = queue.Queue()
        self._stop = threading.Event()
        self.undelivered: list[Record] = []
        for record in _read_records(workspace.root / TELEMETRY):
            self._records.put(record)
        self._thread = threading.Thread(target=self._deliver_all, name="tracking", daemon=True)
        self._thread.start()

    def send(self, record: Record) -> None:
        """Queue a record: `{"do": "start" | "metrics" | "inputs" | "artifacts" | "end", "key": ..., ...}`."""
        self._records.put(record | {"at": record.get("at", now_ms())})

    def wait(self, timeout_s: float = DRAIN_S) -> bool:
        """Whether all that was sent before this call has been delivered, waiting for it at most `timeout_s`."""
        reached = threading.Event()
        self._records.put({"do": "reach", "key": "", "event": reached})
        return reached.wait(timeout_s)

    def close(self) -> None:
        """Deliver what is left; keep what cannot be delivered for the next run."""
        self._records.put(None)
        self._thread.join(DRAIN_S)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(RETRY_S)
        left = [*self.undelivered, *_drain(self._records)]
        path = self._workspace.root / TELEMETRY
        if left:
            _write_records(path, left)
        else:
            path.unlink(missing_ok=True)

    def _deliver_all(self) -> None:
        store: Store | None = None
        closing = False
        while not closing:
            batch, closing = self._next_batch()
            self.undelivered += batch
            while self.undelivered and not self._stop.is_set():
                try:
                    store = store or Store(self._uri, self._workspace.name, self._artifacts)
                    store.apply(self.undelivered)  # takes each record off the list once it is delivered
                except Exception as error:  # noqa: BLE001  whatever MLflow raises, training goes on
                    print(f"tracking: {type(error).__name__}: {str(error)[:200]}; trying again", file=sys.stderr)  # noqa: T201
                    if closing or self._stop.wait(RETRY_S):
                        return
                    more, closing = self._next_batch(block=False)
                    self.undelivered += more
                    self._note_gap()

    def _note_gap(self) -> None:
        """One record behind those that come late, so that the night's run says so."""
        if not any(record["do"] == "gap" for record in self.undelivered):
            keys = [record["key"] for record in self.undelivered if record["key"]]
            self.undelivered += [{"do": "gap", "key": _night_of(key), "at": now_ms()} for key in keys[:1]]

    def _next_batch(self, block: bool = True) -> tuple[list[Record], bool]:
        """Records that came within FLUSH_S of the first; and whether the end was among them."""
        batch: list[Record] = []
        until = time.monotonic() + FLUSH_S
        while True:
            try:
                wait_s = None if block and not batch else max(0.0, until - time.monotonic())
                record = self._records.get(block=block, timeout=wait_s) if block else self._records.get_nowait()
            except queue.Empty:
                return batch, False
            if record is None:
                return batch, True
            if not batch:
                until = time.monotonic() + FLUSH_S
            batch.append(record)
            if record["do"] == "reach":
                return batch, False


def _night_of(key: str) -> str:
    return key.partition("/")[0]


def _drain(records: queue.Queue[Record | None]) -> list[Record]:
    left: list[Record] = []
    while True:
        try:
            record = records.get_nowait()
        except queue.Empty:
            return left
        if record is not None:
            left.append(record)


def _read_records(path: Path) -> list[Record]:
    """What an earlier run could not deliver, behind a note that it comes late."""
    if not path.is_file():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    nights = dict.fromkeys(_night_of(record["key"]) for record in records)
    return records + [{"do": "gap", "key": night, "at": now_ms()} for night in nights]


def _write_records(path: Path, records: list[Record]) -> None:
    kept = [json.dumps(record) for record in records if record["do"] != "reach"]
    write_atomic(path, "".join(line + "\n" for line in kept))
