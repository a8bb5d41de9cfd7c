"""Thirty nights in a row, three of which crash and a week of which never happens: is everything still consistent at the end?

    python -m benchmarks.nights [--nights 30] [--home FOLDER]

Texts are the topics of Python's own help, a part of them new each night. A night is the real flow with its real child
processes, in a process of its own (without a Prefect server around it); the machine's maintenance runs after each. In three
nights that process and all it started are killed with SIGKILL at a random moment, and the night is started again. Seven dates
in the middle are missed.

At the end it checks that the ledger has one decision a night, that ledger, pointer and alias name the same champion, that every
output that a record still names is there byte by byte, that the registry holds each model once, and that no process, lock or
attempt is left. Ends with one JSON line: {"nights", "consistent", "first_night_s", "last_night_s", "disk_mb"}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

FIRST = date(2026, 1, 1)
PRESET = Path(__file__).with_name("nights.yaml")
MISSED = 7  # nights that never happen, in the middle
CRASHES = 3


@dataclass
class Machine:
    """One home, and the process that runs its nights one after the other."""

    home: Path
    texts: Path
    rng: random.Random
    process: subprocess.Popen[str] | None = None
    seconds: list[float] = field(default_factory=list)
    disk: list[int] = field(default_factory=list)

    def run(self, night: str, crash_after_s: float | None = None) -> None:
        """A night from end to end; killed at a moment on the way, and started again, where asked for."""
        if crash_after_s is not None:
            self._ask(night)
            time.sleep(crash_after_s)
            self.kill()
        started = time.monotonic()
        self._ask(night)
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("{"):
            raise SystemExit(f"night {night} failed; see {self.home / 'nights.log'}")
        self.seconds.append(time.monotonic() - started)
        self.disk.append(json.loads(line)["disk"])

    def kill(self) -> None:
        """SIGKILL to the process and everything below it, ranks in groups of their own included."""
        import psutil

        assert self.process is not None
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for member in family:
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None

    def _ask(self, night: str) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.nights", "--serve", str(self.texts)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(self.home / "nights.log").open("a"), text=True,
                env=os.environ | {"NIGHTMILL_HOME": str(self.home)},
            )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(night + "\n")
        self.process.stdin.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--home", type=Path, help="kept afterwards; default: a temporary folder")
    parser.add_argument("--serve", type=Path, metavar="TEXTS", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return
    if asked.nights < 2 + CRASHES:
        parser.error(f"--nights {asked.nights}: wanted at least {2 + CRASHES}, as {CRASHES} of them crash")
    with tempfile.TemporaryDirectory() as folder:
        home = (asked.home or Path(folder)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(home, asked.nights)))


def measure(home: Path, count: int) -> dict[str, Any]:
    rng = random.Random(0)
    machine = Machine(home, home / "texts", rng)
    nights = calendar(count)
    crashing = set(rng.sample(range(1, count - 1), CRASHES))
    pieces = topics()
    for number, night in enumerate(nights):
        write_texts(machine.texts, pieces, number, count)
        usual = statistics.median(machine.seconds) if machine.seconds else 30.0
        machine.run(night, rng.uniform(0.1, 0.9) * usual if number in crashing else None)
        crashed = ", crashed once" if number in crashing else ""
        print(f"{night}  {machine.seconds[-1]:6.1f} s  {machine.disk[-1] / 2**20:7.1f} MiB{crashed}", flush=True)
    machine.stop()
    wrong = inconsistencies(home, nights)
    for line in wrong:
        print("inconsistent:", line)
    quiet = [s for number, s in enumerate(machine.seconds) if number not in crashing]
    return {
        "nights": count, "consistent": not wrong, "first_night_s": round(statistics.median(quiet[1:6]), 1),
        "last_night_s": round(statistics.median(quiet[-5:]), 1), "disk_mb": round(machine.disk[-1] / 2**20, 1),
        "disk_mb_at_night_10": round(machine.disk[min(9, count - 1)] / 2**20, 1), "crashes": CRASHES,
    }  # fmt: skip


def calendar(count: int) -> list[str]:
    """Dates of the nights that happen: a week in the middle does not."""
    half = count // 2
    days = [*range(half), *range(half + MISSED, count + MISSED)]
    return [(FIRST + timedelta(days=day)).isoformat() for day in days]


def topics() -> list[str]:
    """Paragraphs of Python's own help, in a fixed shuffled order."""
    from pydoc_data.topics import topics as told

    pieces = [" ".join(part.split()) for name in sorted(told) for part in told[name].split("\n\n")]
    pieces = sorted({piece for piece in pieces if len(piece.split()) > 30})
    random.Random(1).shuffle(pieces)
    return pieces


def write_texts(folder: Path, pieces: list[str], number: int, count: int) -> None:
    """The file of night `number`: its share of the paragraphs. Files of earlier nights are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    share = pieces[number::count]
    lines = [json.dumps({"text": text}) for text in share]
    (folder / f"night-{number:03d}.jsonl").write_text("\n".join(lines) + "\n")


def serve(texts: Path) -> None:
    """The process that is killed: a night for each date on standard input, a line of JSON after each."""
    from flows.maintenance import maintain
    from flows.nightly import nightly
    from flows.specs import load_spec
    from tasks.child import sweep_orphans
    from tasks.engine import Engine, engine_in_use
    from tasks.machine import set_environment
    from tasks.servers import client_environment
    from tasks.workspace import Workspace, home

    set_environment()
    os.environ.update(client_environment(home()))
    sweep_orphans()
    spec = load_spec(str(PRESET), [f"ingest.sources.0.path={texts}"])
    applications = None
    for line in sys.stdin:
        engine = Engine(Workspace.of(spec.name), line.strip())
        applications = engine.applications = applications or engine.applications
        engine.close = lambda: None  # type: ignore[method-assign]  # its processes serve the next night too
        with engine_in_use(engine):
            report = nightly.fn(spec, engine.night)
        cleaned = maintain(spec, dry_run=False)
        if report.status != "done" or cleaned.busy:
            raise SystemExit(f"night {engine.night}: {report.status}, maintenance {cleaned.status}: {cleaned.busy}")
        size = sum(path.stat().st_size for path in home().rglob("*") if path.is_file())
        print(json.dumps({"night": engine.night, "disk": size}), flush=True)
    for application in (applications or {}).values():
        application.close()


def inconsistencies(home: Path, nights: list[str]) -> list[str]:
    """What is not as it should be after all nights; empty if nothing."""
    os.environ["NIGHTMILL_HOME"] = str(home)
    from tasks.workspace import Workspace

    workspace = Workspace.of("nights")
    return [*_ledger(workspace, nights), *_outputs(workspace), *_registry(workspace), *_left_over(workspace)]


def _ledger(workspace: Any, nights: list[str]) -> list[str]:
    from tasks.ledger import read_ledger

    decided = [line.night for line in read_ledger(workspace)]
    wrong = [
        f"ledger: {decided.count(night)} decisions of night {night}" for night in nights if decided.count(night) != 1
    ]
    return wrong + ([] if workspace.nights() == nights else [f"records of nights {workspace.nights()}"])


def _outputs(workspace: Any) -> list[str]:
    from spark_jobs.errors import DataError
    from spark_jobs.manifests import MANIFEST, FileEntry, file_sha256

    wrong = []
    for night in workspace.nights():
        for step, parent in workspace.record(night).outputs.items():
            folder = workspace.at(parent.address)
            try:
                manifest = json.loads((folder / MANIFEST).read_text())
                files = [FileEntry.model_validate(entry) for entry in manifest["files"]]
                bad = [f.path for f in files if file_sha256(folder / f.path) != f.sha256]
            except (OSError, DataError) as err:
                bad = [str(err)]
            wrong += [f"output {step} of {night}: {path}" for path in bad]
    return wrong


def _registry(workspace: Any) -> list[str]:
    from tasks.ledger import champion_now
    from tasks.registry import CHAMPION, aliases_of, registry_client
    from tasks.registry_retention import MODEL

    champion = champion_now(workspace)
    if champion is None:
        return ["no champion"]
    pointer = json.loads((workspace.root / "champion.json").read_text())
    wrong, client = [], registry_client()
    alias = aliases_of(client, workspace.name).get(CHAMPION)
    if pointer["address"] != champion.address or alias != champion.version:
        wrong.append(f"champion: ledger {champion}, pointer {pointer}, alias {alias}")
    models = [v.tags[MODEL] for v in client.search_model_versions(f"name = '{workspace.name}'")]
    return wrong + [f"registry: {models.count(m)} versions of {m}" for m in sorted(set(models)) if models.count(m) > 1]


def _left_over(workspace: Any) -> list[str]:
    import psutil

    wrong = [str(path) for part in ("attempts", "locks") for path in (workspace.root / part).glob("*")]
    for process in psutil.process_iter():
        try:
            home = process.environ().get("NIGHTMILL_HOME")
        except (psutil.Error, OSError):
            continue
        if home == os.environ["NIGHTMILL_HOME"] and process.pid != os.getpid():
            wrong.append(f"process {process.pid} {' '.join(process.cmdline())[:100]}")
    return wrong


if __name__ == "__main__":
    main()
