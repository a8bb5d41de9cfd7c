"""Children die with us, in whole families, and their output is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from spark_jobs.errors import DataError, JobCrashed
from spark_jobs.requests import Request
from tasks import application
from tasks.application import Application
from tasks.child import Child, sweep_orphans

SLEEPER = "import time; time.sleep(300)"
# a grandchild that leads its own session, as torchrun's ranks do
FAMILY = (
    "import subprocess, sys, time\n"
    f"p = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)\n"
    "print('grandchild', p.pid, flush=True)\n"
    "time.sleep(300)"
)


def wait_until(condition: object, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def grandchild_of(child: Child) -> int:
    assert wait_until(lambda: any(line.startswith("grandchild") for line in child.tail))
    return int(next(line for line in child.tail if line.startswith("grandchild")).split()[1])


def test_child_output_reaches_callback_tail_and_file(tmp_path: Path) -> None:
    lines: list[str] = []
    child = Child(
        [sys.executable, "-c", "print('a'); print('b\\udcff'.encode('utf-8', 'replace'))"],
        tmp_path / "x.log",
        on_line=lines.append,
    )
    child.process.wait()
    child.stop()
    assert lines[0] == "a"
    assert (tmp_path / "x.log").read_text().splitlines() == lines


def test_child_whose_log_finds_no_room_is_read_to_its_end(tmp_path: Path) -> None:
    """A pipe that nobody empties holds 64 KiB; then its writer stops for good."""
    child = Child([sys.executable, "-c", "for n in range(20000): print('line', n)"], Path("/dev/full"))
    assert child.process.wait(30) == 0
    assert wait_until(lambda: child.tail and child.tail[-1] == "line 19999")
    child.stop()


def test_child_stopped_takes_a_grandchild_in_another_session_along(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", FAMILY], tmp_path / "x.log")
    grandchild = grandchild_of(child)
    child.stop()
    assert is_gone(child.pid)
    assert is_gone(grandchild)


def test_child_killed_by_others_still_has_its_orphans_swept_by_stop(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", FAMILY], tmp_path / "x.log")
    grandchild = grandchild_of(child)
    os.kill(child.pid, signal.SIGKILL)
    child.process.wait()
    assert not is_gone(grandchild)
    child.stop()
    assert is_gone(grandchild)


def test_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    )
    child = Child([sys.executable, "-c", code], tmp_path / "x.log")
    assert wait_until(lambda: "up" in child.tail)
    child.stop(grace_s=0.5)
    assert is_gone(child.pid)


def test_child_dies_when_its_parent_is_killed_and_the_next_run_sweeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path))
    code = (
        "import sys, time, pathlib; from tasks.child import Child\n"
        f"c = Child([sys.executable, '-c', {FAMILY!r}], pathlib.Path({str(tmp_path / 'x.log')!r}))\n"
        "while not c.tail: time.sleep(.05)\n"
        "print(c.pid, c.tail[0].split()[1], flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child, grandchild = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    assert wait_until(lambda: is_gone(child))
    assert grandchild in sweep_orphans()
    assert is_gone(grandchild)


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Application:
    """An application whose jobs are: echo, fail, die, sleep."""
    (tmp_path / "toy_app.py").write_text(
        "import os, signal, time\n"
        "from spark_jobs.errors import DataError\n"
        "from spark_jobs.requests import Outcome, send, serve\n"
        "def handle(r):\n"
        "    if r.job == 'fail': raise DataError('bad data')\n"
        "    if r.job == 'defect': 1 / 0\n"
        "    if r.job == 'die': print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if r.job == 'sleep': time.sleep(300)\n"
        "    send('event', {'pid': os.getpid()})\n"
        "    return Outcome(num_rows=len(r.spec), format='text')\n"
        "serve(handle)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    monkeypatch.setitem(application.MODULES, "spark", "toy_app")
    return Application("spark", tmp_path / "logs")


def request(job: str) -> Request:
    return Request(job=job, spec={"a": 1}, out="/nowhere", night="2026-11-25")


def test_application_answers_several_requests_from_one_process(answering: Application) -> None:
    pids = []
    with answering:
        for _ in range(2):
            assert answering.ask(request("echo"), 60, lambda e: pids.append(e["pid"])).num_rows == 1
    assert len(set(pids)) == 1


def test_application_raises_the_class_the_job_raised_and_stays_usable(answering: Application) -> None:
    with answering:
        with pytest.raises(DataError, match="bad data"):
            answering.ask(request("fail"), 60)
        assert answering.ask(request("echo"), 60).num_rows == 1


def test_application_reports_a_defect_with_its_traceback(answering: Application) -> None:
    with answering, pytest.raises(Exception, match=r"ZeroDivisionError[\s\S]*1 / 0"):
        answering.ask(request("defect"), 60)


def test_application_that_died_says_its_last_words_and_starts_again(answering: Application) -> None:
    with answering:
        with pytest.raises(JobCrashed, match=r"died[\s\S]*last words"):
            answering.ask(request("die"), 60)
        assert answering.ask(request("echo"), 60).num_rows == 1


def test_application_past_its_deadline_is_stopped(answering: Application) -> None:
    with answering, pytest.raises(JobCrashed, match="deadline of 1 s"):
        answering.ask(request("sleep"), 1.0)
    assert answering.family() == []
