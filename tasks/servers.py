"""The Prefect and MLflow servers: where they keep things, how clients reach them, and a private one for a single run.

With NIGHTMILL_PROFILE=cluster they run elsewhere (compose, Kubernetes): then PREFECT_API_URL and MLFLOW_TRACKING_URI say where,
and their own variables hold the passwords (PREFECT_API_AUTH_STRING, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD).

$NIGHTMILL_HOME/servers/
    prefect.db mlflow.db versions.json    SQLite databases, and the releases that migrated them
    mlartifacts/<pipeline>/               files logged to MLflow
    results/                              what sub-flows returned, as JSON
    state.json                            who is running since `nightmill up` (mode 0600: it holds the password)
    *.log
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from spark_jobs.errors import NightmillError, RequestError
from spark_jobs.manifests import Frozen
from tasks.child import OWNER, TOKEN, Child
from tasks.locks import is_running
from tasks.server_databases import ServerName, are_elsewhere, database_url, note_version, prepare_database
from tasks.server_process import HOSTS, LISTEN_FD

LOOPBACK = "127.0.0.1"
START_S = 180.0  # on a loaded machine, with a database to migrate; 5 s is usual
HEALTH = {"prefect": "/api/health", "mlflow": "/health"}


class ServerProcess(Frozen):
    """A process started by `nightmill up`. started: seconds since the epoch, so that a reused pid is not mistaken for it."""

    name: str
    pid: int
    started: float
    log: str


class Servers(Frozen):
    """What `nightmill up` left running. auth: `user:password` of the Prefect server, empty for none."""

    prefect_port: int
    mlflow_port: int
    auth: str
    processes: tuple[ServerProcess, ...]

    @property
    def prefect_url(self) -> str:
        return f"http://{LOOPBACK}:{self.prefect_port}"

    @property
    def api_url(self) -> str:
        return f"{self.prefect_url}/api"

    @property
    def mlflow_url(self) -> str:
        return f"http://{LOOPBACK}:{self.mlflow_port}"

    def dead(self) -> list[ServerProcess]:
        return [process for process in self.processes if not is_running(process.pid, process.started)]


def servers_folder(home: Path) -> Path:
    return home / "servers"


def state_file(home: Path) -> Path:
    return servers_folder(home) / "state.json"


def read_state(home: Path) -> Servers | None:
    """What `nightmill up` wrote, alive or not."""
    try:
        return Servers.model_validate_json(state_file(home).read_text())
    except FileNotFoundError:
        return None
    except ValidationError as err:
        raise NightmillError(f"{state_file(home)}: cannot be read; run `nightmill down`, then `nightmill up`") from err


def running_servers(home: Path) -> Servers | None:
    """The servers of `nightmill up`, if both of them live."""
    state = read_state(home)
    if state is None or any(process.name in HEALTH for process in state.dead()):
        return None
    return state


def address_elsewhere(variable: str) -> str:
    """Raises: RequestError if the variable is not set."""
    address = os.environ.get(variable, "")
    if not address:
        raise RequestError(f"NIGHTMILL_PROFILE=cluster wants {variable}: the address of the server to use")
    return address


def tracking_uri(home: Path) -> str:
    """Where MLflow is: the server elsewhere, the one of `nightmill up`, or else the database itself."""
    if are_elsewhere():
        return address_elsewhere("MLFLOW_TRACKING_URI")
    servers = running_servers(home)
    if servers is not None:
        return servers.mlflow_url
    return database_url("mlflow", servers_folder(home))


def client_environment(home: Path) -> dict[str, str]:
    """Every variable that a flow process or a worker needs to find the servers and to stay quiet and safe.

    Without `nightmill up` there is no PREFECT_API_URL in it: `embedded_prefect` says it.
    """
    folder = servers_folder(home)
    environment = {
        "NIGHTMILL_HOME": str(home),
        "PREFECT_HOME": str(folder / "prefect"),  # a user's own profiles and settings do not reach us
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default is pickle
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "results"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_TRACKING_URI": tracking_uri(home),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_MODEL_CATALOG_URI": "",  # the default is fetched from the network
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a dead server costs seconds, not the default's minutes
        "PREFECT_CLIENT_MAX_RETRIES": "7",  # waits of 2, 4, ... 128 s: an API away for four minutes fails no step; the default, one
    }
    if are_elsewhere():
        return environment | {"PREFECT_API_URL": address_elsewhere("PREFECT_API_URL")}
    servers = running_servers(home)
    if servers is not None:
        environment["PREFECT_API_URL"] = servers.api_url
        if servers.auth:
            environment["PREFECT_API_AUTH_STRING"] = servers.auth
    return environment


def server_environment(name: ServerName, home: Path, migrated: bool, port: int) -> dict[str, str]:
    """Settings of a server process. migrated: its database needs nothing done."""
    folder = servers_folder(home)
    common = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    if name == "mlflow":  # the names that `mlflow server` itself passes on, see mlflow/server/__init__.py `_run_server`
        return common | {
            "_MLFLOW_SERVER_FILE_STORE": database_url(name, folder),
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "mlartifacts"),
            "_MLFLOW_IN_JOB_EXECUTOR": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_MODEL_CATALOG_URI": "",
        }
    settings = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url(name, folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}:{port}" for host in HOSTS),  # the default is *
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_RUNS": "31",  # nights known ahead: after a month of downtime the newest is still there
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }
    if migrated:
        settings |= {
            "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
            "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        }
    return common | settings


def foreign_variables(environment: dict[str, str]) -> dict[str, str]:
    """`environment` without what other servers' clients, or the child that we may be ourselves, were told."""
    own = (OWNER, TOKEN, LISTEN_FD, "MLFLOW_TRACKING_URI")
    return {k: v for k, v in environment.items() if k not in own and not k.startswith(("PREFECT_", "_MLFLOW_SERVER"))}


def listen(port: int, what: str, option: str) -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one.

    Raises: NightmillError if the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as err:
        listener.close()
        raise NightmillError(
            f"port {port} on {LOOPBACK} is taken, {what} cannot listen there: stop what uses it, or pass {option} with another"
        ) from err
    listener.listen(128)
    return listener


def basic_auth(auth: str) -> dict[str, str]:
    """The HTTP header for `user:password`; nothing for none."""
    return {"Authorization": f"Basic {base64.b64encode(auth.encode()).decode()}"} if auth else {}


def csrf_headers(servers: Servers) -> dict[str, str]:
    """What the Prefect server of `up` wants beside the password where something is written. Prefect's own clients fetch it themselves."""
    client = uuid.uuid4().hex
    request = urllib.request.Request(f"{servers.api_url}/csrf-token?client={client}", headers=basic_auth(servers.auth))
    with urllib.request.urlopen(request, timeout=10) as answer:
        return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": json.load(answer)["token"]}


def answers(name: ServerName, port: int, auth: str = "", timeout_s: float = 5.0) -> bool:
    """Whether the server on that port answers its health check."""
    request = urllib.request.Request(f"http://{LOOPBACK}:{port}{HEALTH[name]}", headers=basic_auth(auth))
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def wait_until_healthy(
    name: ServerName, port: int, is_alive: Callable[[], bool], last_lines: Callable[[], str], auth: str = ""
) -> None:
    """Return once the server answers. Raises: NightmillError with the end of its log if it dies or stays silent."""
    deadline = time.monotonic() + START_S
    while not answers(name, port, auth):
        if not is_alive():
            raise NightmillError(f"the {name} server died while starting; the end of its log:\n{last_lines()}")
        if time.monotonic() > deadline:
            raise NightmillError(
                f"the {name} server gave no answer in {START_S:.0f} s; the end of its log:\n{last_lines()}"
            )
        time.sleep(0.1)


class EmbeddedPrefect:
    """A private Prefect API server for one run: no UI, no scheduler; it dies with us, whatever becomes of us.

    Built early and asked for late: the constructor returns at once, `wait` when the server answers.
    """

    def __init__(self, home: Path) -> None:
        self._servers = servers_folder(home)
        self._child: Child | None = None
        if are_elsewhere():
            self.api_url = address_elsewhere("PREFECT_API_URL")
            return
        outside = running_servers(home)
        if outside is not None:
            self.api_url = outside.api_url
            return
        migrated = prepare_database("prefect", self._servers)
        with listen(0, "the Prefect server", "--port") as listener:
            self._port = listener.getsockname()[1]
            self._child = Child(
                [sys.executable, "-m", "tasks.server_process", "prefect"],
                self._servers / "prefect-embedded.log",
                server_environment("prefect", home, migrated, self._port)
                | {LISTEN_FD: str(listener.fileno()), "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_API_URL": ""},
                pass_fds=(listener.fileno(),),
            )
        self.api_url = f"http://{LOOPBACK}:{self._port}/api"

    def wait(self) -> str:
        """The API's address, once it answers."""
        if self._child is not None:
            wait_until_healthy("prefect", self._port, self._child.is_alive, self._child.last_lines)
            note_version("prefect", self._servers)
        return self.api_url

    def stop(self) -> None:
        if self._child is not None:
            _flush_logs()
            self._child.stop(grace_s=5.0)
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _flush_logs() -> None:
    """Send what the run logged before its server goes away."""
    if "prefect" in sys.modules:
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=5)


@contextmanager
def embedded_prefect(home: Path) -> Iterator[str]:
    """The address of a Prefect API that answers: the one of `nightmill up`, or a private one until this ends."""
    with EmbeddedPrefect(home) as server:
        yield server.wait()
