"""A home, and one torch process, for the tests that release models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.application import Application
from tasks.machine import set_environment
from tasks.servers import client_environment
from tasks.workspace import home


@pytest.fixture(scope="module")
def release_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh NIGHTMILL_HOME for one test module."""
    before = dict(os.environ)
    folder = tmp_path_factory.mktemp("home")
    os.environ["NIGHTMILL_HOME"] = str(folder)
    set_environment()
    os.environ.update(client_environment(home()))
    yield folder
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def torch_application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with Application("torch", tmp_path_factory.mktemp("logs")) as application:
        yield application
