"""Fixtures shared by several packages' tests."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tasks.daemons import start_all, stop_all
from tasks.machine import set_environment
from tasks.servers import Servers, client_environment
from tasks.workspace import home

# pytest-xdist's workers have no file as main module; pyspark.sql.connect takes that for a doctest run and ends the process.
sys.modules["__main__"].__dict__.setdefault("__file__", __file__)


@pytest.fixture(scope="session")
def decided() -> ModuleType:
    """The builders of tests/fixtures/decided.py."""
    place = Path(__file__).parent / "fixtures" / "decided.py"
    location = importlib.util.spec_from_file_location("decided", place)
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh NIGHTMILL_HOME for one test module."""
    before = dict(os.environ)
    folder = tmp_path_factory.mktemp("home")
    os.environ["NIGHTMILL_HOME"] = str(folder)
    set_environment()
    os.environ.update(client_environment(home()))
    yield folder
    os.environ.clear()
    os.environ.update(before)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def servers_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Servers]]:
    """Prefect and MLflow servers and both workers, as `nightmill up` starts them, on free ports."""
    home = tmp_path_factory.mktemp("servers-home")
    try:
        yield home, start_all(home, free_port(), free_port())
    finally:
        stop_all(home)
