"""Databases of the two servers: SQLite files that are migrated once at set-up and then copied, or Postgres.

NIGHTMILL_PREFECT_DATABASE   postgresql://user:password@host:port/name, default a SQLite file under $NIGHTMILL_HOME/servers
NIGHTMILL_MLFLOW_DATABASE    the same for MLflow; a database of its own
The same names with _FILE behind them name a file that holds the address, so that no password is in an environment.

Migrating an empty database takes Prefect 9 s and MLflow 2 s. `make_templates` does it at install time; a home without
databases gets copies. `versions.json` beside them says which release migrated what is there, so that a database is only
migrated when it is new or a server was upgraded.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from spark_jobs.errors import RequestError
from tasks.locks import held
from tasks.workspace import write_atomic

ServerName = Literal["prefect", "mlflow"]
SERVERS: tuple[ServerName, ...] = ("prefect", "mlflow")
DATABASE: dict[ServerName, str] = {"prefect": "NIGHTMILL_PREFECT_DATABASE", "mlflow": "NIGHTMILL_MLFLOW_DATABASE"}
DRIVERS: dict[ServerName, str] = {"prefect": "asyncpg", "mlflow": "psycopg"}
SCHEME = re.compile(r"postgres(ql)?(\+\w+)?://")
MIGRATION_S = 300.0  # how long the migration by another process is waited for


def template_folder() -> Path:
    """Where set-up leaves the templates: inside the virtual environment, as they belong to its versions."""
    return Path(os.environ.get("NIGHTMILL_TEMPLATES") or Path(sys.prefix) / "share" / "nightmill")


def template(name: ServerName, folder: Path) -> Path:
    return folder / f"{name}-{version(name)}.db"


def database(name: ServerName, servers: Path) -> Path:
    return servers / f"{name}.db"


def are_elsewhere() -> bool:
    """Whether this machine uses servers that nobody starts here."""
    return os.environ.get("NIGHTMILL_PROFILE") == "cluster"


def outside_database(name: ServerName) -> str:
    """Address of a Postgres that was asked for, as SQLAlchemy wants it; "" for none.

    Raises: RequestError if it is no address of a Postgres database, or its driver is not installed.
    """
    variable = DATABASE[name]
    file = os.environ.get(f"{variable}_FILE", "")
    try:
        told = Path(file).read_text().strip() if file else os.environ.get(variable, "")
    except OSError as err:
        raise RequestError(f"{variable}_FILE={file}: cannot be read ({err.strerror})") from err
    if not told:
        return ""
    found = SCHEME.match(told)
    if found is None:  # the value is not shown: it holds a password
        raise RequestError(f"{variable}: wanted postgresql://user:password@host:port/name")
    if importlib.util.find_spec(DRIVERS[name]) is None:
        raise RequestError(f"{variable} needs {DRIVERS[name]}, which is not installed: pip install 'nightmill[server]'")
    return f"postgresql+{DRIVERS[name]}://{told[found.end() :]}"


def database_url(name: ServerName, servers: Path) -> str:
    """As the server itself, and for MLflow also a client without a server, wants it."""
    driver = "+aiosqlite" if name == "prefect" else ""
    return outside_database(name) or f"sqlite{driver}:///{database(name, servers)}"


def prepare_database(name: ServerName, servers: Path) -> bool:
    """Put a database in place if there is none. Returns whether it is as this release wants it: MLflow's always is afterwards,
    Prefect's server migrates its own when it starts. Databases of servers elsewhere are theirs.
    """
    if are_elsewhere():
        return True
    servers.mkdir(parents=True, exist_ok=True)
    path = database(name, servers)
    if not outside_database(name) and not path.exists():
        source = template(name, template_folder())
        if source.is_file():
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            shutil.copyfile(source, partial)
            partial.replace(path)
            note_version(name, servers)
    if _is_migrated(name, servers):
        return True
    if name == "prefect":
        return False
    with held(servers / "mlflow-migration.lock", wait_s=MIGRATION_S):
        if not _is_migrated(name, servers):  # several processes at once would each make the same tables
            _migrate_mlflow(database_url(name, servers))
            note_version(name, servers)
    return True


def _is_migrated(name: ServerName, servers: Path) -> bool:
    return _versions(servers).get(_key(name)) == version(name)


def _key(name: ServerName) -> str:
    """Of a database in versions.json: another Postgres is another database."""
    outside = outside_database(name)
    return f"{name}@{hashlib.sha256(outside.encode()).hexdigest()[:16]}" if outside else name


def note_version(name: ServerName, servers: Path) -> None:
    """Write down that this release has migrated the database."""
    noted = _versions(servers)
    if noted.get(_key(name)) != version(name):
        write_atomic(servers / "versions.json", json.dumps(noted | {_key(name): version(name)}, indent=1) + "\n")


def make_templates(folder: Path) -> list[Path]:
    """Migrate one empty database a server into `folder`. Seconds: 12 together. Existing templates are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name in SERVERS:
        path = template(name, folder)
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            _migrate_prefect(partial) if name == "prefect" else _migrate_mlflow(f"sqlite:///{partial}")
            for rest in ("-wal", "-shm"):
                Path(f"{partial}{rest}").unlink(missing_ok=True)
            partial.replace(path)
        made.append(path)
    return made


def _versions(servers: Path) -> dict[str, str]:
    path = servers / "versions.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _migrate_prefect(path: Path) -> None:
    import sqlite3

    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

    async def migrate() -> None:
        from prefect.server.database import provide_database_interface
        from prefect.server.models.block_registration import run_block_auto_registration

        db = provide_database_interface()
        await db.create_db()
        session = await db.session()
        async with session:
            await run_block_auto_registration(session=session)
            await session.commit()
        await (await db.engine()).dispose()

    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{path}"}):
        asyncio.run(migrate())
    with sqlite3.connect(path) as connection:  # fold the write-ahead log into the file that is copied
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _migrate_mlflow(url: str) -> None:
    """Tables as this release wants them, made or changed. The default experiment is left to the first server or client, as it
    holds a path of its home."""
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    engine = sqlalchemy.create_engine(url)
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
