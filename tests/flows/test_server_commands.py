"""Exit codes and messages of `nightmill status`, `up`, `deploy` and `down`, as processes: they set their environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def nightmill(home: Path, *arguments: str) -> tuple[int, str]:
    """Exit code, and both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        env=os.environ | {"NIGHTMILL_HOME": str(home), "COLUMNS": "200"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_status_of_nothing_is_one_and_names_the_next_move(tmp_path):
    code, said = nightmill(tmp_path, "status")
    assert code == 1
    assert "nightmill up" in said


def test_status_of_everything_up_is_zero(servers_home):
    home, servers = servers_home
    code, said = nightmill(home, "status")
    assert code == 0, said
    assert servers.prefect_url in said


def test_deploy_to_nowhere_is_one_message(tmp_path):
    code, said = nightmill(tmp_path, "deploy")
    assert code == 1
    assert said.startswith("nightmill: no Prefect server")


def test_down_of_nothing_is_fine(tmp_path):
    assert nightmill(tmp_path, "down") == (0, "nothing was up\n")


def test_up_when_a_port_is_taken_names_it_and_leaves_nothing(servers_home, tmp_path):
    _, servers = servers_home
    code, said = nightmill(tmp_path, "up", "--port", str(servers.prefect_port))
    assert code == 1
    assert f"port {servers.prefect_port} on 127.0.0.1 is taken" in said
    assert nightmill(tmp_path, "status")[0] == 1
