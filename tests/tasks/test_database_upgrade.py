"""A database that an older release of MLflow has left is migrated before it is used, and keeps what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.server_databases import database, prepare_database


def schema_of(path: Path) -> str:
    import sqlalchemy
    from mlflow.store.db.utils import _get_schema_version

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    try:
        return str(_get_schema_version(engine))
    finally:
        engine.dispose()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A servers folder whose MLflow database is some migrations behind, with one experiment in it."""
    import sqlalchemy
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    url = f"sqlite:///{database('mlflow', tmp_path)}"
    engine = sqlalchemy.create_engine(url)
    Base.metadata.create_all(engine)
    settings = _get_alembic_config(url)
    behind = [script.revision for script in ScriptDirectory.from_config(settings).walk_revisions()][5]
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, behind)
        connection.execute(
            sqlalchemy.text(
                "insert into experiments (name, artifact_location, lifecycle_stage) values ('old', 'x', 'active')"
            )
        )
    engine.dispose()
    (tmp_path / "versions.json").write_text(json.dumps({"mlflow": "3.0.0"}))
    return tmp_path


def test_older_database_is_migrated_once_and_keeps_its_experiments(older: Path) -> None:
    from importlib.metadata import version

    from mlflow import MlflowClient

    path = database("mlflow", older)
    before = schema_of(path)
    assert prepare_database("mlflow", older)
    after = schema_of(path)
    assert after != before
    assert MlflowClient(f"sqlite:///{path}").get_experiment_by_name("old") is not None
    assert json.loads((older / "versions.json").read_text())["mlflow"] == version("mlflow")
    changed = path.stat().st_mtime_ns
    assert prepare_database("mlflow", older)
    assert path.stat().st_mtime_ns == changed
