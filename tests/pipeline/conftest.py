"""A tiny night run by the real engine with real child processes, without the orchestrator around it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.nightly import nightly
from flows.report import NightReport
from flows.specs import load_spec
from tasks.application import Application, AppName
from tasks.engine import Engine, engine_in_use
from tasks.machine import set_environment
from tasks.workspace import Workspace

FIXTURES = Path(__file__).parent.parent / "fixtures"
NIGHT = "2026-11-25"


@dataclass
class Pipeline:
    """One pipeline in a home of its own. `run` runs a night of it and returns the report."""

    texts: Path
    applications: dict[AppName, Application]
    settings: tuple[str, ...] = ()

    def run(self, *settings: str, night: str = NIGHT, planning: bool = False) -> NightReport:
        source = f"ingest.sources.0.path={self.texts}"
        spec = load_spec(str(FIXTURES / "tiny.yaml"), [source, *self.settings, *settings])
        engine = Engine(self.workspace, night, planning=planning)
        engine.applications = self.applications
        engine.close = lambda: None  # type: ignore[method-assign]  # they serve the next night of this test module too
        with engine_in_use(engine):
            return nightly.fn(spec, night)

    @property
    def workspace(self) -> Workspace:
        return Workspace.of("tiny")

    def states(self, report: NightReport) -> dict[str, str]:
        return {step.step: step.state for step in report.steps}


@pytest.fixture(scope="session")
def applications(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[AppName, Application]]:
    """One Spark and one torch process for all tests here: starting them is most of a tiny night."""
    set_environment()
    logs = tmp_path_factory.mktemp("logs")
    both: dict[AppName, Application] = {name: Application(name, logs) for name in ("spark", "torch")}
    for application in both.values():
        application.start()
    yield both
    for application in both.values():
        application.close()


@pytest.fixture(scope="session")
def write_topics() -> Callable[..., Path]:
    location = importlib.util.spec_from_file_location("topics", FIXTURES / "topics.py")
    assert location is not None
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    location.loader.exec_module(module)
    return module.write_topics  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pipeline(
    own_home: Path, applications: dict[AppName, Application], write_topics: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:  # fmt: skip
    return Pipeline(write_topics(tmp_path_factory.mktemp("texts")), applications)
