"""`nightmill run` as a whole process, with the Prefect server it brings along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tasks.child import marked

PRESET = Path(__file__).parent.parent / "fixtures" / "tiny.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, write_topics: Callable[..., Path]) -> Path:
    return write_topics(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli-home")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows", *arguments],
        env=os.environ | {"NIGHTMILL_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def night(texts: Path, *settings: str) -> list[str]:
    flags = [flag for setting in (f"ingest.sources.0.path={texts}", *settings) for flag in ("--set", setting)]
    return ["run", str(PRESET), "--night", "2026-11-25", "--json", *flags]


def left_behind(folder: Path) -> list[psutil.Process]:
    return marked("NIGHTMILL_HOME", lambda value: value == str(folder))


def test_run_stopped_by_sigterm_says_so_and_leaves_no_process(folder: Path, texts: Path) -> None:
    process = start(folder, *night(texts))
    assert process.stderr is not None
    for line in process.stderr:
        if "start" in line and "clean" in line:
            break
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 1
    assert "run the same command again to go on" in err
    assert left_behind(folder) == []


def test_run_goes_on_where_it_was_stopped_and_ends_with_one_json_line(folder: Path, texts: Path) -> None:
    code, out, err = finish(start(folder, *night(texts)))
    assert code == 0, err
    assert len(out.splitlines()) == 1
    report = json.loads(out)
    states = {step["step"]: step["state"] for step in report["steps"]}
    assert states["ingest"] == "cached"
    assert states["release"] == "ran"
    assert report["status"] == "done"
    assert report["model"] == report["model"] | {"name": "tiny", "version": "1", "alias": "champion"}
    assert report["metrics"]["gzip_bits_per_byte"] > 0
    assert left_behind(folder) == []


def test_run_again_is_all_cached(folder: Path, texts: Path) -> None:
    code, out, err = finish(start(folder, *night(texts)))
    assert code == 0, err
    assert {step["state"] for step in json.loads(out)["steps"]} == {"cached"}


def test_run_with_a_missing_folder_exits_2_with_one_message(folder: Path) -> None:
    code, out, err = finish(start(folder, *night(Path("/nowhere/at/all"))))
    assert code == 2
    assert [line for line in err.splitlines() if line.startswith("nightmill: ")] != []
    assert "/nowhere/at/all" in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "demo", "--set", "train.num_stepz=3"], "did you mean num_steps?"),
        (["run", "demmo"], "neither one of"),
        (["run", "demo", "--night", "yesterday"], "wanted a date like"),
        (["plan", "demo", "--set", "clean.min_words=-1"], "greater than or equal to 1"),
    ],
)
def test_wrong_request_exits_2_at_once(folder: Path, arguments: list[str], message: str) -> None:
    code, out, err = finish(start(folder, *arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
