"""One Spark session for all tests of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spark_jobs.session import spark_session
from tests.spark_jobs.workspace import Workspace

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    session = spark_session()
    yield session
    session.stop()


@pytest.fixture
def make_workspace(spark: SparkSession, tmp_path: Path) -> Callable[[str], Workspace]:
    return lambda name: Workspace(spark, tmp_path / name)


@pytest.fixture
def workspace(make_workspace: Callable[[str], Workspace]) -> Workspace:
    return make_workspace("workspace")
