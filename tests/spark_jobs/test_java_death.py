"""The JVM is killed by others (out of memory): a crash, worth a retry, and no answer about a defect of the job."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from spark_jobs.errors import JobCrashed
from spark_jobs.requests import Request
from tasks.application import Application


def java_of(spark: Application) -> psutil.Process:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for process in spark.family():
            if "java" in process.name() and process.net_connections("inet"):
                return process
        time.sleep(0.1)
    pytest.fail("no JVM in two minutes")


def wait_until_dead(process: psutil.Process) -> None:
    """Its parent, which does not know of it yet, keeps it as a zombie."""
    deadline = time.monotonic() + 60
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_jvm_is_a_crash_and_the_next_request_gets_a_new_one(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "A text of a few words."}\n')
    source = {"kind": "jsonl", "path": str(tmp_path), "name": "texts"}
    request = Request(job="ingest", spec={"sources": [source]}, out=str(tmp_path / "out"), night="2026-11-25")
    with Application("spark", tmp_path / "logs") as spark:
        assert spark.ask(request, 120).num_rows == 1
        java = java_of(spark)
        java.send_signal(number)
        wait_until_dead(java)
        with pytest.raises(JobCrashed, match="its JVM was killed"):
            spark.ask(request, 120)
        assert spark.ask(request, 120).num_rows == 1
