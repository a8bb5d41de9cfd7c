"""A Postgres server of one's own for a while, on loopback, from the machine's programs (Debian's package `postgresql`).

    with postgres() as server:
        server.create_database("prefect")
        server.url("prefect")         postgresql://nightmill:...@127.0.0.1:PORT/prefect

Postgres refuses to run as root: then it runs as `nobody`. No wheel that carries Postgres was found with pg_trgm, which Prefect
wants of it (docs/adr/0070-postgres.md).
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "nightmill"
START_S = 60.0
TOO_LOW = ("fsync=off", "synchronous_commit=off")  # a power cut may lose all of it, which a test can bear


@dataclass(frozen=True)
class Postgres:
    programs: Path
    port: int
    password: str

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def environment(self) -> dict[str, str]:
        """By which Postgres's own clients, started by name, find the server."""
        return {
            "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": self.password,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
        }  # fmt: skip

    def run(self, program: str, *arguments: str) -> str:
        """What one of Postgres's own clients prints: psql, pg_dump, createdb ..."""
        done = subprocess.run(
            [str(self.programs / program), *arguments],
            env=os.environ | self.environment, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    def create_database(self, name: str) -> None:
        self.run("createdb", name)


def programs() -> Path | None:
    """The folder of Postgres's programs, newest first; None where there is none."""
    places = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    places = sorted(places, key=lambda place: int(place.parent.name), reverse=True)
    return next(iter([*places, *([Path(on_path).resolve().parent] if on_path else [])]), None)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server with its data in a temporary folder; all of it is gone at the end. Raises: FileNotFoundError without programs."""
    with tempfile.TemporaryDirectory(prefix="nightmill-postgres-") as folder, _running(Path(folder)) as server:
        yield server


@contextmanager
def _running(folder: Path) -> Iterator[Postgres]:
    found = programs()
    if found is None:
        raise FileNotFoundError("no Postgres here: apt-get install postgresql")
    identity: dict[str, str] = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        identity = {"user": "nobody", "group": "nogroup"}
    port, password = _free_port(), secrets.token_urlsafe(18)
    secret = folder / "password"
    secret.write_text(password)
    if identity:
        os.chown(secret, nobody.pw_uid, nobody.pw_gid)
    data, log = folder / "data", folder / "postgres.log"
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    subprocess.run(
        [str(found / "initdb"), "-D", str(data), "-U", USER, "--pwfile", str(secret), "--auth", "scram-sha-256", "-E", "UTF8"],
        env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=True, **identity,
    )  # fmt: skip
    secret.unlink()
    options = [
        "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "max_connections=200", "shared_buffers=32MB", *TOO_LOW
    ]  # fmt: skip
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(found / "postgres"), "-D", str(data), "-p", str(port), *(word for o in options for word in ("-c", o))],
            env=environment, cwd=folder, stdout=output, stderr=output, **identity,
        )  # fmt: skip
    server = Postgres(found, port, password)
    try:
        _wait(server, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGINT)  # by SIGTERM it would wait until its last client has gone
        process.wait(30)


def _wait(server: Postgres, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    ready = [str(server.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(server.port)]
    while subprocess.run(ready, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Postgres did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
