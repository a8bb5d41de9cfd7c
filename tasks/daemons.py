"""`nightmill up` and `down`: both servers and a worker for each pool, running on after the command that started them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from spark_jobs.errors import NightmillError
from tasks.child import kill_all, marked
from tasks.locks import held
from tasks.server_databases import SERVERS, ServerName, note_version, prepare_database
from tasks.server_process import LISTEN_FD
from tasks.servers import (
    START_S,
    ServerProcess,
    Servers,
    answers,
    basic_auth,
    client_environment,
    csrf_headers,
    foreign_variables,
    listen,
    read_state,
    server_environment,
    servers_folder,
    state_file,
    wait_until_healthy,
)
from tasks.workspace import write_atomic

MARK = "NIGHTMILL_SERVERS"  # in the environment of all we start: its value is the home they belong to
# Processes of flow runs. How many work at once says the pool's own limit (prefect.yaml). On `cpu` more are let in: a run that waits
# for approval has no slot but a process, and two of them would else keep every night from starting.
POOLS = {"cpu": 16, "gpu": 1}
ALL = (*SERVERS, *(f"worker-{pool}" for pool in POOLS))
LISTENS = {"prefect": ("the Prefect server", "--port"), "mlflow": ("the MLflow server", "--mlflow-port")}
STOP_S = 10.0


def start_all(
    home: Path,
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
    with_auth: bool = True,
    apply: Callable[[Servers], None] = lambda servers: None,
    say: Callable[[str], None] = lambda line: None,
) -> Servers:
    """Start what is missing and return once everything answers. `apply` is called between servers and workers.

    Where a part of what `up` left is alive, that part and the runs in work go on: what died is started again, on the same port and
    with the same password, as clients in the middle of a night know no other.

    Raises: NightmillError if a port is taken or something does not start; then nothing of what was started is left running.
    """
    folder = servers_folder(home)
    with held(folder / "up.lock", wait_s=5.0):
        state = read_state(home)
        missing = ALL if state is None else _missing(state)
        if state is not None and not missing:
            say("already up")
            return state
        if state is None or missing == ALL:
            _stop_everything(home)  # half of an earlier `up` may have been killed
            auth = f"nightmill:{secrets.token_urlsafe(18)}" if with_auth else ""
            state = Servers(prefect_port=prefect_port, mlflow_port=mlflow_port, auth=auth, processes=())
        else:
            say(f"not running: {', '.join(missing)}; the rest goes on")
        try:
            return _start_missing(home, state, missing, apply, say)
        except BaseException:
            _stop_started_since(home, state)
            raise


def _missing(state: Servers) -> tuple[str, ...]:
    """Names of what `up` starts and what does not live, in the order of their start."""
    alive = {process.name for process in state.processes} - {process.name for process in state.dead()}
    return tuple(name for name in ALL if name not in alive)


def _start_missing(
    home: Path,
    servers: Servers,
    missing: Sequence[str],
    apply: Callable[[Servers], None],
    say: Callable[[str], None],
) -> Servers:
    names = [name for name in SERVERS if name in missing]
    if names:
        servers = _start_servers(home, servers, names)
        say(f"servers answer on ports {servers.prefect_port} and {servers.mlflow_port}")
    apply(servers)
    return _start_workers(home, servers, [pool for pool in POOLS if f"worker-{pool}" in missing])


def _stop_started_since(home: Path, before: Servers) -> None:
    """Undo half an `up`: everything where nothing lived before, else what is new."""
    if not before.processes:
        _stop_everything(home)
        return
    known = {(process.pid, process.started) for process in before.processes}
    now = read_state(home)
    for process in now.processes if now is not None else ():
        if (process.pid, process.started) not in known:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(process.pid).kill()
    _write_state(home, before)


def stop_all(home: Path) -> list[int]:
    """Stop servers, workers and the runs they started, whole process trees. Returns the pids that were stopped."""
    return _stop_everything(home)


def _start_servers(home: Path, servers: Servers, names: Sequence[ServerName]) -> Servers:
    folder = servers_folder(home)
    ports = {"prefect": servers.prefect_port, "mlflow": servers.mlflow_port}
    listeners: dict[str, socket.socket] = {}
    try:
        for name in names:
            listeners[name] = listen(ports[name], *LISTENS[name])
        started = []
        for name in names:
            migrated = prepare_database(name, folder)
            fd = listeners[name].fileno()
            environment = server_environment(name, home, migrated, ports[name]) | {LISTEN_FD: str(fd)}
            if name == "prefect":
                environment["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] = "true"  # the default is false
                if servers.auth:
                    environment["PREFECT_SERVER_API_AUTH_STRING"] = servers.auth
            argv = [sys.executable, "-m", "tasks.server_process", name]
            started.append(_start(name, argv, home, environment, (fd,)))
    finally:
        for listener in listeners.values():
            listener.close()
    servers = _with_processes(home, servers, started)
    for name, process in zip(names, started, strict=True):
        auth = servers.auth if name == "prefect" else ""
        wait_until_healthy(name, ports[name], _aliveness(process), _log_tail(process), auth)
        note_version(name, folder)
    return servers


def _start_workers(home: Path, servers: Servers, pools: Sequence[str]) -> Servers:
    environment = client_environment(home) | {
        "NIGHTMILL_PROFILE": "server",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",  # a sub-flow's report crosses processes as a stored result
        "PREFECT_WORKER_QUERY_SECONDS": "2",  # the default of 10 is waited for before each of a night's five sub-flows
    }
    workers = [
        _start(
            f"worker-{pool}",
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process",
             "--name", f"nightmill-{pool}", "--limit", str(POOLS[pool]), "--install-policy", "never"],
            home,
            environment,
        )
        for pool in pools
    ]  # fmt: skip
    servers = _with_processes(home, servers, workers)
    for pool, worker in zip(pools, workers, strict=True):
        _wait_for_worker(servers, pool, worker)
    return servers


def _with_processes(home: Path, servers: Servers, started: Sequence[ServerProcess]) -> Servers:
    """The state with `started` in the place of what had their names; written down."""
    found = {process.name: process for process in (*servers.processes, *started)}
    servers = servers.model_copy(update={"processes": tuple(found[name] for name in ALL if name in found)})
    _write_state(home, servers)
    return servers


def _wait_for_worker(servers: Servers, pool: str, worker: ServerProcess) -> None:
    """Return once the pool has heard from its worker."""
    is_alive, tail = _aliveness(worker), _log_tail(worker)
    deadline = time.monotonic() + START_S
    while not any(entry["status"] == "ONLINE" for entry in _post(servers, f"/work_pools/{pool}/workers/filter")):
        if not is_alive():
            raise NightmillError(f"the worker of pool {pool} died while starting; the end of its log:\n{tail()}")
        if time.monotonic() > deadline:
            raise NightmillError(f"no worker of pool {pool} in {START_S:.0f} s; the end of its log:\n{tail()}")
        time.sleep(0.2)


def _post(servers: Servers, path: str) -> list[dict[str, Any]]:
    """Answer of the Prefect API to an empty filter; nothing where the thing asked about does not exist yet."""
    headers = {"Content-Type": "application/json"} | basic_auth(servers.auth) | csrf_headers(servers)
    request = urllib.request.Request(servers.api_url + path, b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)  # type: ignore[no-any-return]
    except urllib.error.HTTPError as err:
        if err.code == 404:
            return []
        raise


def _start(
    name: str, argv: Sequence[str], home: Path, environment: dict[str, str], pass_fds: tuple[int, ...] = ()
) -> ServerProcess:
    """A process in a session of its own, cut off from our terminal, its output in a file."""
    log = servers_folder(home) / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=foreign_variables(dict(os.environ)) | environment | {MARK: str(home)},
            cwd=home,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    return ServerProcess(name=name, pid=process.pid, started=psutil.Process(process.pid).create_time(), log=str(log))


def _write_state(home: Path, servers: Servers) -> None:
    previous = os.umask(0o077)
    try:
        write_atomic(state_file(home), servers.model_dump_json(indent=1) + "\n")
    finally:
        os.umask(previous)


def _stop_everything(home: Path) -> list[int]:
    """Ask, wait, then kill. Everything we started carries the mark, also flow runs in sessions of their own."""
    ours = _marked_processes(home)
    for process in ours:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    psutil.wait_procs(ours, timeout=STOP_S)
    left = _marked_processes(home)
    survivors = kill_all(set(left))
    if survivors:
        raise NightmillError(f"processes {survivors} do not die even by SIGKILL (stuck in the kernel?); look at them")
    state_file(home).unlink(missing_ok=True)
    return sorted({process.pid for process in [*ours, *left]})


def _marked_processes(home: Path) -> list[psutil.Process]:
    return marked(MARK, lambda value: value == str(home))


def _aliveness(process: ServerProcess) -> Callable[[], bool]:
    def is_alive() -> bool:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)  # our child still: a zombie would look alive
        return psutil.pid_exists(process.pid)

    return is_alive


def _log_tail(process: ServerProcess, count: int = 15) -> Callable[[], str]:
    return lambda: "\n".join(Path(process.log).read_text(errors="replace").splitlines()[-count:])


def health(home: Path) -> list[tuple[str, str, bool, str]]:
    """A line for each process of `up`: name, address or pool, whether it works, and where its log is."""
    state = read_state(home)
    if state is None:
        return []
    dead = {process.name for process in state.dead()}
    lines = []
    for process in state.processes:
        alive = process.name not in dead
        where = f"pid {process.pid}"
        if process.name == "prefect":
            where, alive = state.prefect_url, alive and answers("prefect", state.prefect_port, state.auth)
        elif process.name == "mlflow":
            where, alive = state.mlflow_url, alive and answers("mlflow", state.mlflow_port)
        lines.append((process.name, where, alive, process.log))
    return lines
