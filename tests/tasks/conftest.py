"""One torch process for the tests that release models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.application import Application


@pytest.fixture(scope="session")
def torch_application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with Application("torch", tmp_path_factory.mktemp("logs")) as application:
        yield application
