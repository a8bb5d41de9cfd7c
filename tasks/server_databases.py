"""Databases of the two servers: migrated once at set-up, then copied.

Migrating an empty database takes Prefect 9 s and MLflow 2 s. `make_templates` does it at install time; a home without
databases gets copies. `versions.json` beside them says which release migrated what is there, so that a server is only
asked to migrate when it was upgraded.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from tasks.workspace import write_atomic

ServerName = Literal["prefect", "mlflow"]
SERVERS: tuple[ServerName, ...] = ("prefect", "mlflow")


def template_folder() -> Path:
    """Where set-up leaves the templates: inside the virtual environment, as they belong to its versions."""
    return Path(os.environ.get("NIGHTMILL_TEMPLATES") or Path(sys.prefix) / "share" / "nightmill")


def template(name: ServerName, folder: Path) -> Path:
    return folder / f"{name}-{version(name)}.db"


def database(name: ServerName, servers: Path) -> Path:
    return servers / f"{name}.db"


def prepare_database(name: ServerName, servers: Path) -> bool:
    """Put a database in place if there is none. Returns whether it is already as this release wants it."""
    path = database(name, servers)
    servers.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        source = template(name, template_folder())
        if not source.is_file():
            return False
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copyfile(source, partial)
        partial.replace(path)
        note_version(name, servers)
    return _versions(servers).get(name) == version(name)


def note_version(name: ServerName, servers: Path) -> None:
    """Write down that this release has migrated the database."""
    noted = _versions(servers)
    if noted.get(name) != version(name):
        write_atomic(servers / "versions.json", json.dumps(noted | {name: version(name)}, indent=1) + "\n")


def make_templates(folder: Path) -> list[Path]:
    """Migrate one empty database a server into `folder`. Seconds: 12 together. Existing templates are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name in SERVERS:
        path = template(name, folder)
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            _migrate_prefect(partial) if name == "prefect" else _migrate_mlflow(partial)
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


def _migrate_mlflow(path: Path) -> None:
    """Tables only: the default experiment is left to the first server or client, as it holds a path of its home."""
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    _initialize_tables(engine)
    engine.dispose()
