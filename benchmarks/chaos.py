"""Everything that works on a night is killed, in every step, at every moment, and started again: the same outputs, nothing left.

    make chaos        python -m benchmarks.chaos [--thorough | --subset] [--only STEP,STEP] [--minutes M] [--home FOLDER]

A tiny night runs unbroken once; the state before each of its steps is kept. Then, for each step and each kill, that state is
put back, the step is run and killed (with `flow` the process that runs the night, with `worker` the Spark driver or the
process that forks ranks, with `its child` the JVM or the youngest rank or job), and run again: by another flow process where
it was the flow, by the step's own retry where it was not. Moments: before the step starts, when its first bytes are on the
disk, when all is written but not yet published, when it is published but not yet reported. After each kill: what is published
is whole; after each rerun: every output so far has the digest of the unbroken night, and no process, port, lock or attempt is
left. Measurements of time, and the choice and the report that show them, differ from run to run: of those only that they are whole.

In every fourth step the disk (a tmpfs, where this machine lets us mount one) is full when half of the output is written: the
message names it, and with room again the step gives the same. Then the servers are killed, see benchmarks/chaos_servers.py.

Without --thorough each pair of step and moment gets one of the two signals, in turn. --subset: one kill a step (moment, victim
and signal in turn), two full disks, no servers: what `make test` has time for. Last line, JSON: {"kills", "identical",
"leftovers"}; exit code 1 unless all kills are identical and nothing is left.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from spark_jobs.manifests import MANIFEST

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
NIGHT = "2026-11-25"
MOMENTS = ("before start", "mid-write", "after write", "after commit")
SIGNALS = ("SIGKILL", "SIGTERM")
WORKERS = ("worker", "its child")
FULL_DISK = ("mid-write", "disk", "ENOSPC")
GONE_S = 10.0  # a process whose parent was killed has this long
ANSWER_S = 300.0
UNSTABLE = ("choose", "measure-", "report-")  # the report shows what was measured
LAST = "release"
DISK = "size=8g"  # only a limit: a tmpfs takes what is in it
FAILED = 3  # exit code of a flow process whose night raised


@dataclass
class Process:
    """A forked flow process, and the two pipes to talk with it."""

    pid: int
    asking: int
    answering: int
    buffer: bytes = b""
    status: int | None = None

    def ask(self, **request: Any) -> None:
        os.write(self.asking, (json.dumps(request) + "\n").encode())

    def answer(self) -> dict[str, Any] | None:
        """Its next line; None when it is gone."""
        while b"\n" not in self.buffer:
            chunk = os.read(self.answering, 65536)
            if not chunk:
                return None
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        return dict(json.loads(line))

    def wait(self) -> int:
        """How it ended: a negative signal number, or an exit code."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self.asking)
            os.close(self.answering)
        return self.status

    def end(self) -> None:
        with suppress(OSError):
            self.ask(do="end")
        self.wait()


@dataclass
class Matrix:
    """One home and its kept states. steps: those of the unbroken night, in order, each with the application that does it."""

    home: Path
    spec: Any
    expected: dict[str, str] = field(default_factory=dict)
    steps: list[dict[str, str]] = field(default_factory=list)
    kills: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    _warm: Process | None = None
    _next: Process | None = None

    @property
    def workspace(self) -> Any:
        from tasks.workspace import Workspace

        return Workspace.of(self.spec.name)

    def fork(self, app: str = "") -> Process:
        """A flow process, warmed by our imports: it starts `app` at once."""
        ask_read, ask_write = os.pipe()
        answer_read, answer_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for other in (self._warm, self._next):
                    if other is not None:
                        os.close(other.asking)
                        os.close(other.answering)
                os.close(ask_write)
                os.close(answer_read)
                code = self._serve(ask_read, answer_write, app)
            finally:
                os._exit(code)
        os.close(ask_read)
        os.close(answer_write)
        return Process(pid, ask_write, answer_read)

    def _serve(self, asking: int, answering: int, app: str) -> int:
        """The life of a flow process."""
        from benchmarks.chaos_flow import FlowProcess, Kill, walk

        log = os.open(self.home / "chaos.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        flow = FlowProcess(self.spec, NIGHT)
        try:
            flow.start(app)
            for line in os.fdopen(asking):
                request = json.loads(line)
                if request["do"] == "end":
                    return 0
                if request["do"] == "walk":
                    reply: dict[str, Any] = {"steps": walk(self.spec, NIGHT, lambda step: self.keep(step.name))}
                else:
                    kill = request["kill"] and Kill(**request["kill"])
                    reply = flow.run(request["until"], kill)
                os.write(answering, (json.dumps(reply) + "\n").encode())
        except KeyboardInterrupt:
            return 1  # as `nightmill run` after SIGTERM
        except BaseException:  # noqa: BLE001  the process boundary
            import traceback

            traceback.print_exc()
            return 3
        finally:
            flow.close()
        return 0

    def keep(self, step: str) -> None:
        """The state of the home right before `step` works."""
        state = self.home / "states" / step
        if not state.exists():
            unkept = shutil.ignore_patterns("locks", "attempts", "logs")
            shutil.copytree(self.workspace.root, state / "workspace", ignore=unkept)
            _copy_registry(self.home / "servers", state)

    def put_back(self, step: str) -> None:
        """Logs stay: warm processes write to them."""
        state, root = self.home / "states" / step, self.workspace.root
        for path in root.iterdir():
            if path.name != "logs":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(state / "workspace", root, dirs_exist_ok=True)
        if step == LAST:
            _copy_registry(state, self.home / "servers")

    def unbroken(self) -> None:
        process = self.fork()
        process.ask(do="walk")
        reply = process.answer()
        process.end()
        if reply is None:
            raise SystemExit(f"the unbroken night failed; see {self.home / 'chaos.log'}")
        self.steps = reply["steps"]
        self.expected = self.digests()
        self.sizes = {step: _bytes_below(self.workspace.at(p.address)) for step, p in self._outputs().items()}
        self.leftovers += self.left_over(process.pid)

    def _outputs(self) -> Any:
        return self.workspace.record(NIGHT).outputs

    def digests(self) -> dict[str, str]:
        return {step: entry.digest for step, entry in self._outputs().items() if not step.startswith(UNSTABLE)}

    def try_kill(self, kill: Any, app: str) -> None:
        """Put the state back, kill, run again, compare."""
        from benchmarks.chaos_flow import as_line

        self.put_back(kill.step)
        victim, self._warm = self._warm or self.fork(app), None
        if kill.victim in ("flow", "disk"):
            self._next = self.fork(app)  # starts its application while the victim still works
        victim.ask(do="run", until=kill.step, kill=as_line(kill))
        reply = victim.answer()
        if kill.victim in WORKERS:
            self._retried(kill, victim, reply)
            return
        if kill.victim == "disk" and reply is not None:  # all it writes fits into a page, and is no less whole for that
            self.late[str(kill)] += 1
            victim.end()
        code = victim.wait()
        self.kills += 1
        if kill.victim == "disk":
            self._room_again(kill, code)
        elif code not in (-9, 1):
            self.wrong.append(f"{kill}: exit code {code}, see chaos.log")
        self._note_lateness(kill)
        self._check_published(kill)
        self._check_gone(kill, victim.pid, with_sessions=code in (1, FAILED))
        again, self._next = self._next, None
        assert again is not None
        again.ask(do="run", until=kill.step, kill=None)
        if again.answer() is None:
            self.wrong.append(f"{kill}: the rerun failed with exit code {again.wait()}, see chaos.log")
            return
        self._compare(kill)
        self._check_gone(kill, victim.pid, with_sessions=True)
        self._keep_warm(kill, again)

    def _room_again(self, kill: Any, code: int) -> None:
        """The night was to end with a message that names the disk."""
        _remount(self.home / "workspaces", DISK)
        told = (self.home / "chaos.log").read_text(errors="replace").rsplit("Traceback (most recent call last)", 1)[-1]
        if code == FAILED and "DiskFull" not in told:
            self.wrong.append(f"{kill}: the message does not name the disk: {told.strip().splitlines()[-1][:200]}")

    def _retried(self, kill: Any, flow: Process, reply: dict[str, Any] | None) -> None:
        self.kills += 1
        if reply is None:
            self.wrong.append(f"{kill}: the flow did not get over it, exit code {flow.wait()}, see chaos.log")
            return
        if not reply["killed"]:
            self.wrong.append(f"{kill}: nothing was killed")
        if kill.moment == "mid-write" and not reply["retries"]:
            self.late[str(kill)] += 1
        self._check_published(kill)
        self._compare(kill)
        self._keep_warm(kill, flow)

    def _keep_warm(self, kill: Any, process: Process) -> None:
        if kill.step == LAST:  # holds a database that is about to be replaced
            process.end()
        else:
            self._warm = process

    def _note_lateness(self, kill: Any) -> None:
        is_published = kill.step in self.workspace.record(NIGHT).outputs or any(
            True
            for _ in self.workspace.root.glob(f"*/{kill.step}-????????????????/{MANIFEST}")
            if _.parent.parent.name != "attempts"
        )
        if kill.victim != "disk" and is_published != (kill.moment == "after commit"):
            self.late[str(kill)] += 1

    def _check_published(self, kill: Any) -> None:
        """A reader sees a whole output or none, also right after the kill."""
        from spark_jobs.manifests import FileEntry, file_sha256

        for manifest in self.workspace.root.glob(f"*/*/{MANIFEST}"):
            folder = manifest.parent
            if folder.parent.name == "attempts":
                continue
            for entry in json.loads(manifest.read_text())["files"]:
                entry = FileEntry.model_validate(entry)
                path = folder / entry.path
                if not path.is_file() or file_sha256(path) != entry.sha256:
                    self.wrong.append(f"{kill}: {path} is published and not whole")

    def _compare(self, kill: Any) -> None:
        found = self.digests()
        until = [line["step"] for line in self.steps].index(kill.step)
        wanted = {line["step"] for line in self.steps[: until + 1] if not line["step"].startswith(UNSTABLE)}
        differ = sorted(step for step in wanted if found.get(step) != self.expected[step])
        if differ or kill.step not in self.workspace.record(NIGHT).outputs:
            self.wrong.append(f"{kill}: other outputs than unbroken: {', '.join(differ) or kill.step}")
        root = self.workspace.root
        here = [str(p) for part in ("attempts", "locks") for p in (root / part).glob("*")]
        here += [str(p) for p in [*root.glob(".*"), *root.glob("nights/.*")]]
        self.leftovers += [f"{kill}: {path}" for path in here]
        if kill.step == LAST:
            self._check_decisions(kill)

    def _check_decisions(self, kill: Any) -> None:
        lines = self.workspace.ledger.read_text().splitlines()
        if len([line for line in lines if json.loads(line)["night"] == NIGHT]) != 1:
            self.wrong.append(f"{kill}: {len(lines)} decisions in the ledger, wanted 1")

    def _check_gone(self, kill: Any, pid: int, with_sessions: bool) -> None:
        """What the dead flow process had started. Processes in sessions of their own go when the next run begins."""
        until = time.monotonic() + GONE_S
        while (left := self.left_over(pid)) and time.monotonic() < until and with_sessions:
            time.sleep(0.1)
        self.leftovers += [f"{kill}: {what}" for what in left] if with_sessions else []

    def left_over(self, pid: int) -> list[str]:
        """Processes that the flow process `pid` had started, and what they listen on."""
        from tasks.child import OWNER, marked

        found = []
        for process in marked(OWNER, lambda value: value.startswith(f"{pid}:") and value.endswith(f":{self.home}")):
            with suppress(psutil.Error):
                ports = [c.laddr.port for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
                found.append(f"process {process.pid} {' '.join(process.cmdline())[:80]}, ports {ports}")
        return found

    def close(self) -> None:
        for process in (self._warm, self._next):
            if process is not None:
                process.end()
        self._warm = self._next = None

    def whole_night(self) -> None:
        """Once from the first step to the last: all outputs are those of the unbroken night."""
        self.put_back(self.steps[0]["step"])
        _copy_registry(self.home / "states" / LAST, self.home / "servers")
        process = self.fork("spark")
        process.ask(do="run", until=LAST, kill=None)
        if process.answer() is None or self.digests() != self.expected:
            self.wrong.append("the whole night: run again from its start it is another one")
        process.end()


def _copy_registry(source: Path, target: Path) -> None:
    """MLflow's database and files, as they are at `source`; nothing where there is none."""
    for path in target.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(target / "mlartifacts", ignore_errors=True)
    for path in source.glob("mlflow.db*"):
        shutil.copy2(path, target / path.name)
    if (source / "mlartifacts").is_dir():
        shutil.copytree(source / "mlartifacts", target / "mlartifacts")


def plan_kills(
    steps: list[dict[str, str]], thorough: bool, only: set[str], subset: bool = False
) -> list[tuple[Any, str]]:
    """The matrix, in the order of the night: each kill with the application of its step."""
    from benchmarks.chaos_flow import Kill

    planned = []
    for number, line in enumerate(steps):
        if only and line["step"] not in only:
            continue
        pick = _one_of_a_step if subset else _all_of_a_step
        for moment, victim, name in pick(number, line["app"] == "inline", thorough):
            planned.append((Kill(line["step"], moment, victim, name), line["app"]))  # type: ignore[arg-type]
    return planned


def _all_of_a_step(number: int, inline: bool, thorough: bool) -> list[tuple[str, str, str]]:
    """Moment, victim and signal. An inline step has no worker."""
    kills = []
    for place, moment in enumerate(MOMENTS):
        signals = SIGNALS if thorough else (SIGNALS[(number + place) % 2],)
        kills += [(moment, "flow", name) for name in signals]
    pairs = [(v, s) for v in WORKERS for s in SIGNALS]
    for place, moment in enumerate(() if inline else MOMENTS if thorough else (MOMENTS[number % 2],)):
        chosen = pairs if thorough and moment == "mid-write" else [pairs[(number // 2 + place * 2) % 4]]
        kills += [(moment, victim, name) for victim, name in chosen]
    return kills + ([FULL_DISK] if thorough or number % 4 == 1 else [])


def _one_of_a_step(number: int, inline: bool, _thorough: bool) -> list[tuple[str, str, str]]:
    victim = "flow" if inline else (*WORKERS, "flow")[number % 3]
    moments = MOMENTS if victim == "flow" else MOMENTS[:2]
    kill = (moments[number // 3 % len(moments)], victim, SIGNALS[number % 2])
    return [kill, *([FULL_DISK] if number in (1, 8) else [])]


def tiny_spec(texts: Path) -> Any:
    from flows.specs import load_spec

    return load_spec(str(FIXTURES / "tiny.yaml"), [f"ingest.sources.0.path={texts}", "train.ranks=2"])


@contextmanager
def small_disk(folder: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """A tmpfs at `folder` that can be made too small; False where this machine mounts none."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        say(f"no full disks, as none can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run_matrix(
    home: Path,
    texts: Path,
    plan: Callable[[list[dict[str, str]]], list[tuple[Any, str]]],
    only: set[str],
    until_s: float,
    say: Callable[[str], None],
    can_fill: bool = False,
) -> Matrix:
    """plan: from the steps to the kills. until_s: monotonic time after which no further kill is begun."""
    matrix = Matrix(home, tiny_spec(texts))
    began = time.monotonic()
    matrix.unbroken()
    say(f"unbroken night: {len(matrix.steps)} steps in {time.monotonic() - began:.0f} s")
    unknown = only - {line["step"] for line in matrix.steps}
    if unknown:
        raise SystemExit(
            f"--only {','.join(sorted(unknown))}: the steps are {', '.join(s['step'] for s in matrix.steps)}"
        )
    before = ""
    for kill, app in plan(matrix.steps):
        if kill.victim == "disk":
            if not can_fill:
                continue
            kill = replace(kill, room=matrix.sizes[kill.step] // 2)
        if time.monotonic() > until_s:
            say(f"stopped before: {kill}")
            break
        if app != before:  # the next steps want another application
            matrix.close()
            before = app
        started, before_it = time.monotonic(), (len(matrix.wrong), len(matrix.leftovers))
        matrix.try_kill(kill, "torch" if app == "inline" else app)
        new = [*matrix.wrong[before_it[0] :], *matrix.leftovers[before_it[1] :]]
        say(f"{matrix.kills:4} {time.monotonic() - started:6.1f} s  {'WRONG' if new else 'as unbroken'}  {kill}")
        for line in new:
            say(f"     {line}")
    matrix.close()
    return matrix


def kill_servers_too(matrix: Matrix, home: Path, say: Callable[[str], None]) -> None:
    """Adds what the killed servers give to `matrix`."""
    from benchmarks.chaos_servers import kill_servers

    served = kill_servers(home, matrix.spec, NIGHT, matrix.expected, say=say)
    matrix.kills += served.kills
    matrix.wrong += served.wrong
    matrix.leftovers += served.leftovers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thorough", action="store_true", help="both signals everywhere, all victims in mid-write")
    parser.add_argument("--subset", action="store_true", help="one kill a step, no servers")
    parser.add_argument("--only", default="", metavar="STEP,...", help="kill in these steps alone, and no servers")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further kill after so long")
    parser.add_argument("--home", type=Path, help="kept afterwards; default: a temporary folder")
    asked = parser.parse_args()
    only = {name for name in asked.only.split(",") if name}
    until_s = time.monotonic() + asked.minutes * 60

    def say(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        home = (asked.home or Path(folder) / "home").resolve()
        (home / "servers" / "prefect").mkdir(parents=True, exist_ok=True)
        texts = write_texts(Path(folder))
        with prefect_server(Path(folder)) as address, small_disk(home / "workspaces", say) as can_fill:
            os.environ |= {"NIGHTMILL_HOME": str(home), "PREFECT_API_URL": address}
            _import_everything(home)
            matrix = run_matrix(
                home,
                texts,
                lambda steps: plan_kills(steps, asked.thorough, only, asked.subset),
                only,
                until_s,
                say,
                can_fill,
            )
            if not asked.subset:
                matrix.whole_night()
        if not (asked.subset or only or time.monotonic() > until_s):
            kill_servers_too(matrix, home.with_name(home.name + "-served"), say)
    for line in [*matrix.wrong, *matrix.leftovers]:
        print("WRONG:", line)
    for name, count in matrix.late.items():
        print(f"another moment than meant, {count} times: {name}")
    wrong = {line.split(":", 1)[0] for line in matrix.wrong}
    print(json.dumps({"kills": matrix.kills, "identical": matrix.kills - len(wrong), "leftovers": len(matrix.leftovers),
                      "at_another_moment": sum(matrix.late.values())}))  # fmt: skip
    return 1 if matrix.wrong or matrix.leftovers else 0


class prefect_server:  # noqa: N801  used as a function
    """A Prefect API in a process of its own, for the artifacts of all nights; this process must stay without threads."""

    def __init__(self, folder: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from tasks.servers import embedded_prefect\n"
            f"with embedded_prefect(Path({str(folder / 'prefect')!r})) as url: print(url, flush=True); sys.stdin.read()"
        )
        environment = os.environ | {"NIGHTMILL_HOME": str(folder / "prefect")}
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)  # fmt: skip

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")


def _import_everything(home: Path) -> None:
    """What every flow process would import, once, before the first fork."""
    from tasks.machine import set_environment
    from tasks.servers import client_environment

    set_environment()
    address = os.environ["PREFECT_API_URL"]
    os.environ.update(client_environment(home))
    os.environ["PREFECT_API_URL"] = address
    for name in (
        "benchmarks.chaos_flow",
        "mlflow",
        "mlflow.tracking",
        "prefect.artifacts",
        "tasks.night_page",
        "pyarrow.parquet",
    ):
        importlib.import_module(name)


def write_texts(folder: Path) -> Path:
    location = importlib.util.spec_from_file_location("topics", FIXTURES / "topics.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    written: Path = module.write_topics(folder / "texts")
    return written


if __name__ == "__main__":
    sys.exit(main())
