"""The servers of `nightmill up` are killed in the middle of a night and started again: the night ends as if nothing had been.

    python -m benchmarks.chaos_servers [--down SECONDS] [--home FOLDER]        (part of `make chaos`)

A tiny night is started through its deployment, as the form in the UI does. While steps of it work, the Prefect server, the MLflow
server or a worker gets a signal; after a while `nightmill up` is called again, as an operator would. A night that ended by it
(a worker takes its runs along) gets what *Retry* in the UI does. At the end: the outputs of an unbroken night, one decision
in the ledger, the run Completed, no MLflow run open, no lock, no attempt, and after `nightmill down` no process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ports import free_port

DOWN_S = 120.0  # of the first kill of each server; the others last SHORT_S
SHORT_S = 3.0
STEP_S = 600.0  # until the step that is waited for works
OPEN = ("RUNNING", "SCHEDULED", "UNFINISHED")


@dataclass(frozen=True)
class ServerKill:
    """One kill. process: its name in `nightmill status`."""

    step: str
    process: str
    signal: str

    def __str__(self) -> str:
        return f"{self.signal} to {self.process} during {self.step}"


KILLS = (
    ServerKill("clean", "prefect", "SIGKILL"),
    ServerKill("tokenize", "mlflow", "SIGKILL"),
    ServerKill("train", "prefect", "SIGTERM"),
    ServerKill("export", "worker-gpu", "SIGTERM"),
    ServerKill("compress-int4", "worker-gpu", "SIGKILL"),
    ServerKill("evaluate-int8", "mlflow", "SIGTERM"),
    ServerKill("gate", "worker-cpu", "SIGKILL"),
    ServerKill("release", "mlflow", "SIGKILL"),
)


@dataclass
class ServedNight:
    """A home whose servers are up, and the run of one night on them."""

    home: Path
    spec: Any
    night: str
    say: Callable[[str], None]
    kills: int = 0
    wrong: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    run_id: str = ""
    _looked: float = 0.0

    @property
    def workspace(self) -> Any:
        from tasks.workspace import Workspace

        return Workspace(self.home / "workspaces" / self.spec.name)

    def nightmill(self, *arguments: str) -> None:
        """As from an operator's shell: in a process of its own, told nothing but the home."""
        told = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
        with (self.home / "chaos-servers.log").open("a") as log:
            subprocess.run([sys.executable, "-m", "flows", *arguments], env=told | {"NIGHTMILL_HOME": str(self.home)},
                           stdout=log, stderr=log, check=True, timeout=400)  # fmt: skip

    def up(self, *ports: str) -> None:
        self.nightmill("up", *ports)

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        from tasks.servers import read_state

        servers = read_state(self.home)
        assert servers is not None
        return SyncPrefectClient(servers.api_url, auth_string=servers.auth)

    def start(self) -> None:
        """What the form of deployment `nightly` does."""
        with self.client() as client:
            deployment = client.read_deployment_by_name("nightly/nightly")
            parameters = {"spec": self.spec.model_dump(mode="json"), "night": self.night}
            self.run_id = str(client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id)

    def state(self) -> Any:
        from uuid import UUID

        with self.client() as client:
            state = client.read_flow_run(UUID(self.run_id)).state
        assert state is not None
        return state

    def kill(self, kill: ServerKill, down_s: float) -> None:
        """Wait for the step, send the signal, start again what died."""
        from tasks.servers import read_state

        if not self._wait_for(kill.step):
            self.wrong.append(f"{kill}: the step never came; the run is {self.state().name}")
            return
        servers = read_state(self.home)
        assert servers is not None
        (pid,) = (process.pid for process in servers.processes if process.name == kill.process)
        psutil.Process(pid).send_signal(signal.Signals[kill.signal])
        self.kills += 1
        time.sleep(down_s)
        began = time.monotonic()
        self.up()
        self.say(f"{kill}; down for {down_s:.0f} s, up again in {time.monotonic() - began:.0f} s")
        after = read_state(self.home)
        if after is None or (after.auth, after.prefect_port) != (servers.auth, servers.prefect_port):
            self.wrong.append(f"{kill}: another address or password than before")

    def _wait_for(self, step: str) -> bool:
        """Whether `step` began to work. A run that ended on the way is retried."""
        deadline = time.monotonic() + STEP_S
        while time.monotonic() < deadline:
            if [*self.workspace.root.glob(f"attempts/{step}-*")]:
                return True
            if step in self.workspace.record(self.night).outputs:
                return True
            time.sleep(0.02)
            self._retry_if_ended()
        return False

    def _retry_if_ended(self) -> None:
        """What the button *Retry* does, at most every second."""
        from uuid import UUID

        from prefect.states import AwaitingRetry

        if time.monotonic() - self._looked < 1.0:
            return
        self._looked = time.monotonic()
        state = self.state()
        if state.is_final() and not state.is_completed():
            self.say(f"the run ended {state.name} ({(state.message or '')[:200]}): Retry")
            with self.client() as client:
                client.set_flow_run_state(UUID(self.run_id), AwaitingRetry(message="Retry from the UI"), force=True)

    def finish(self, expected: dict[str, str]) -> None:
        """Let the night end, and compare."""
        deadline = time.monotonic() + STEP_S
        while not self.state().is_completed() and time.monotonic() < deadline:
            time.sleep(0.5)
            self._retry_if_ended()
        state = self.state()
        if not state.is_completed():
            self.wrong.append(f"the night ended {state.name}: {state.message}")
        found = {step: entry.digest for step, entry in self.workspace.record(self.night).outputs.items()}
        differ = sorted(step for step, digest in expected.items() if found.get(step) != digest)
        if differ:
            self.wrong.append(f"the night: other outputs than unbroken: {', '.join(differ)}")
        decisions = self.workspace.ledger.read_text().splitlines() if self.workspace.ledger.exists() else []
        if len(decisions) != 1:
            self.wrong.append(f"the night: {len(decisions)} decisions in the ledger, wanted 1")
        root = self.workspace.root
        self.leftovers += [str(p) for part in ("attempts", "locks") for p in (root / part).glob("*")]
        self.leftovers += self._open_runs()

    def _open_runs(self) -> list[str]:
        """MLflow runs that still say RUNNING, after the sweep that every quarter of an hour brings."""
        from mlflow import MlflowClient

        from tasks.servers import read_state

        self.nightmill("status")
        servers = read_state(self.home)
        assert servers is not None
        client = MlflowClient(servers.mlflow_url)
        experiment = client.get_experiment_by_name(self.spec.name)
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return [f"MLflow run {run.info.run_id} is {run.info.status}" for run in runs if run.info.status in OPEN]

    def down(self) -> None:
        from tasks.child import marked
        from tasks.daemons import MARK

        self.nightmill("down")
        self.leftovers += [f"process {p.pid} {p.name()}" for p in marked(MARK, lambda value: value == str(self.home))]


def kill_servers(
    home: Path,
    spec: Any,
    night: str,
    expected: dict[str, str],
    down_s: float = DOWN_S,
    say: Callable[[str], None] = lambda line: None,
    kills: tuple[ServerKill, ...] = KILLS,
) -> ServedNight:
    """One night with all of `kills`. expected: digests of an unbroken night."""
    home.mkdir(parents=True, exist_ok=True)
    served = ServedNight(home, spec, night, say)
    before: set[str] = set()
    try:
        served.up("--port", str(free_port()), "--mlflow-port", str(free_port()))
        served.start()
        for kill in kills:
            served.kill(kill, SHORT_S if kill.process in before or kill.process.startswith("worker") else down_s)
            before.add(kill.process)
        served.finish(expected)
    finally:
        served.down()
    return served


def main() -> int:
    """Alone, without the unbroken night of `make chaos` to compare with."""
    from benchmarks.chaos import NIGHT, tiny_spec, write_texts

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--down", type=float, default=DOWN_S, metavar="SECONDS")
    parser.add_argument("--home", type=Path, help="kept afterwards; default: a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = (asked.home or Path(folder) / "home").resolve()
        spec = tiny_spec(write_texts(Path(folder)))
        served = kill_servers(home, spec, NIGHT, {}, asked.down, lambda line: print(line, flush=True))
    for line in [*served.wrong, *served.leftovers]:
        print("WRONG:", line)
    print(json.dumps({"kills": served.kills, "wrong": len(served.wrong), "leftovers": len(served.leftovers)}))
    return 1 if served.wrong or served.leftovers else 0


if __name__ == "__main__":
    sys.exit(main())
