"""The commands of docs/operating.md, "Back up" and "Restore", run as they stand there on a home in use; all others are accounted for."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import operating
from benchmarks.postgres import postgres, programs

GUIDE = Path(__file__).parents[2] / "docs" / "operating.md"


def commands(section: str) -> str:
    """The indented lines of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## )", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))


def run(script: str, backup: Path, **environment: str) -> None:
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', os.environ['PATH'])}"
    script = script.replace("/backup", str(backup))
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=os.environ | environment, check=True)


def without(script: str, *words: str) -> str:
    kept = [line for line in script.splitlines() if not any(word in line for word in words)]
    assert len(kept) < len(script.splitlines()), f"the guide has no line with any of {words}"
    return "\n".join(kept)


def files(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in sorted(home.rglob("*")) if p.is_file()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What a night leaves, in small, with an attempt and a lock of one that runs."""
    home = tmp_path / "home"
    workspace = home / "workspaces" / "demo"
    for name, text in {
        "nights/2026-11-25.json": "{}", "ledger.jsonl": "{}\n", "champion.json": "{}", "models/export-01/data/model.safetensors": "w",
        "models/export-01/_manifest.json": "{}", "attempts/train-02/scratch/step-4": "half", "locks/train-02.json": "{}",
    }.items():  # fmt: skip
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(text)
    artifact = home / "servers" / "mlartifacts" / "demo" / "README.md"
    artifact.parent.mkdir(parents=True)
    artifact.write_text("card")
    (home / "servers" / "versions.json").write_text("{}")
    (home / "servers" / "state.json").write_text('{"auth": "nightmill:secret"}')
    return home


def test_every_command_of_the_guide_is_run_or_says_why_not() -> None:
    found = [block for page in operating.GUIDES for block in operating.blocks(page)]
    assert [block.script for block in found if not block.kind] == []
    runs = [block.words for block in found if block.kind == "runs"]
    assert len(runs) == len(set(runs)) > 10
    source = Path(operating.__file__).read_text()
    assert set(runs) == set(re.findall(r'(?:does|keeps|named_blocks\(\)\[)\(?"([\w-]+)"', source))


def test_every_remedy_of_an_alarm_is_run() -> None:
    table = [line for line in operating.GUIDES[1].read_text().splitlines() if line.startswith("| `nightmill-")]
    named = {command for line in table for command in re.findall(r"`(nightmill [^`]+)`", line)}
    assert named - {"nightmill-crash"} == set(operating.REMEDIES)


def test_home_on_sqlite_is_backed_up_while_written_and_restored(home: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    writing = sqlite3.connect(home / "servers" / "mlflow.db")
    writing.execute("pragma journal_mode = wal")
    writing.execute("create table runs (name text)")
    writing.execute("insert into runs values ('night')")
    writing.commit()
    run(without(commands("Back up"), "pg_dump"), backup, NIGHTMILL_HOME=str(home))
    writing.execute("insert into runs values ('after the backup')")
    writing.commit()
    writing.close()
    before = files(home)
    assert not any(b"secret" in path.read_bytes() for path in backup.rglob("*") if path.is_file())
    shutil.rmtree(home)
    home.mkdir()
    run(without(commands("Restore"), "nightmill", "pg_restore", "createdb"), backup, NIGHTMILL_HOME=str(home))
    after = files(home)
    gone = {
        "workspaces/demo/attempts/train-02/scratch/step-4",
        "workspaces/demo/locks/train-02.json",
        "servers/state.json",
    }
    kept = before.keys() - gone - {name for name in before if "mlflow.db" in name}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert not gone & after.keys()
    with sqlite3.connect(home / "servers" / "mlflow.db") as restored:
        assert restored.execute("select name from runs").fetchall() == [("night",)]
    restored.close()


@pytest.mark.skipif(programs() is None, reason="no Postgres on this machine: apt-get install postgresql")
def test_postgres_is_dumped_and_restored_into_another_server(tmp_path: Path) -> None:
    dump = next(line for line in commands("Back up").splitlines() if "pg_dump" in line)
    restore = "\n".join(line for line in commands("Restore").splitlines() if "createdb" in line or "pg_restore" in line)
    (tmp_path / "backup").mkdir()
    with postgres() as server:
        run("createdb prefect && createdb mlflow", tmp_path, **server.environment)
        server.run("psql", "-d", "prefect", "-qc", "create extension pg_trgm; create table flow_run (id int)")
        server.run("psql", "-d", "mlflow", "-qc", "create table runs (name text); insert into runs values ('night')")
        run(dump, tmp_path / "backup", **server.environment)
    with postgres() as server:
        run(restore, tmp_path / "backup", **server.environment)
        assert server.run("psql", "-d", "mlflow", "-Atc", "select name from runs").strip() == "night"
        assert server.run("psql", "-d", "prefect", "-Atc", "select count(*) from flow_run").strip() == "0"
