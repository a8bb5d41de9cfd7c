"""One lock a step: exclusive among the living, taken over from the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from spark_jobs.errors import StepBusy
from tasks.locks import TAKE_OVER_S, held


def test_lock_held_by_a_living_process_is_refused_with_its_pid(tmp_path: Path) -> None:
    with (
        held(tmp_path / "clean.json"),
        pytest.raises(StepBusy, match=f"process {os.getpid()}"),
        held(tmp_path / "clean.json"),
    ):
        pass


def test_lock_is_gone_after_use_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "clean.json"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "clean.json"
    code = f"import pathlib, time; from tasks.locks import held\nwith held(pathlib.Path({str(path)!r})): print('held', flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    owner.kill()
    owner.wait()
    assert path.exists()
    with held(path) as lock:
        assert lock.still_mine()


@pytest.mark.parametrize(("age_s", "free"), [(TAKE_OVER_S + 5, True), (TAKE_OVER_S - 20, False)])
def test_lock_of_another_host_is_taken_over_after_its_heartbeat_stops(tmp_path: Path, age_s: float, free: bool) -> None:
    path = tmp_path / "clean.json"
    path.write_text(json.dumps({"token": "t", "host": "elsewhere", "pid": 1, "started": 0.0}))
    os.utime(path, (time.time() - age_s,) * 2)
    if free:
        with held(path) as lock:
            assert lock.still_mine()
    else:
        with pytest.raises(StepBusy), held(path):
            pass


def test_lock_of_a_reused_pid_counts_as_dead(tmp_path: Path) -> None:
    path = tmp_path / "clean.json"
    body = {
        "token": "t",
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "started": psutil.Process().create_time() - 100,
    }
    path.write_text(json.dumps(body))
    with held(path):
        pass


def test_dead_lock_wanted_by_many_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "clean.json"
    path.write_text(json.dumps({"token": "t", "host": os.uname().nodename, "pid": 2**22 - 1, "started": 0.0}))
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with held(path, wait_s=30):
            with guard:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
