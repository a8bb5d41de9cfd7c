"""The same data jobs on one core, on seven partitions, and on a standalone cluster of two workers of which Python workers
and an executor are killed: the same manifests."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyspark
import pytest

from flows.prepare_corpus import prepare_corpus
from flows.specs import load_spec
from spark_jobs.java import find_java
from spark_jobs.manifests import Handle
from tasks.engine import Engine, StepResult, engine_in_use
from tasks.machine import set_environment
from tasks.steps import Step
from tasks.workspace import Workspace
from tests.spark_jobs.killer import WorkerKiller, workers_below

NIGHT = "2026-11-25"
TINY = Path(__file__).parent.parent / "fixtures" / "tiny.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, write_topics: Callable[..., Path]) -> Path:
    return write_topics(tmp_path_factory.mktemp("texts"), nights=2, per_night=30)


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Run the data jobs of a night in a home of its own; returns the digest of each step's manifest."""

    def prepare(texts: Path, observers: tuple[Any, ...] = (), **environment: str) -> dict[str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NIGHTMILL_HOME", str(tmp_path_factory.mktemp("home")))
            for name, value in environment.items():
                patch.setenv(name, value)
            set_environment()
            spec = load_spec(str(TINY), [f"ingest.sources.0.path={texts}"])
            workspace = Workspace.of(spec.name)
            with engine_in_use(Engine(workspace, NIGHT, observers=observers)):
                prepare_corpus.fn(spec, NIGHT)
            return {step: entry.digest for step, entry in workspace.record(NIGHT).outputs.items()}

    return prepare


@pytest.fixture(scope="module")
def one_core(prepare: Callable[..., dict[str, str]], texts: Path) -> dict[str, str]:
    return prepare(texts, NIGHTMILL_SPARK_MASTER="local[1]", NIGHTMILL_SPARK_PARTITIONS="1", PYTHONHASHSEED="0")


@dataclass
class Cluster:
    """A standalone master on loopback with two workers of one core. `work`: where the executors write their logs."""

    address: str
    work: Path
    workers: list[psutil.Process]

    def executors(self) -> list[psutil.Process]:
        found = []
        for child in (child for worker in self.workers for child in worker.children()):
            with suppress(psutil.Error):  # it ended meanwhile
                if "CoarseGrainedExecutorBackend" in str(child.cmdline()):
                    found.append(child)
        return found

    def num_lost(self) -> int:
        """Tasks that ended with their Python worker."""
        logs = [path.read_text(errors="replace") for path in self.work.rglob("stderr")]
        return sum(log.count("Python worker exited unexpectedly (crashed)") for log in logs)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"spark://127.0.0.1:{port}"
    environment = os.environ | {
        "JAVA_HOME": str(find_java(tmp_path / "java")),
        "PYTHONPATH": str(Path(__file__).parents[2]),  # the code of the driver, wherever another copy is installed
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_WORKER_DIR": str(tmp_path / "work"),
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }
    start = str(Path(pyspark.__file__).parent / "bin" / "spark-class")

    def run(name: str, *arguments: str) -> Any:
        with (tmp_path / f"{name}.log").open("w") as log:
            argv = [start, f"org.apache.spark.deploy.{arguments[0]}", "--host", "127.0.0.1", "--webui-port", "0"]
            return subprocess.Popen([*argv, *arguments[1:]], env=environment, stdout=log, stderr=subprocess.STDOUT)

    daemons = [run("master", "master.Master", "--port", str(port))]
    try:
        for worker in ("worker-1", "worker-2"):
            daemons.append(run(worker, "worker.Worker", "--cores", "1", "--memory", "1g", address))
        _wait_for(tmp_path / "master.log", "Registering worker", 2)
        yield Cluster(address, tmp_path / "work", [psutil.Process(daemon.pid) for daemon in daemons[1:]])
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


class Disturber:
    """An observer: in every step that uses Spark a Python worker is killed at its work, and in one step an executor."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.killed_executor = False
        self.losses: dict[str, int] = {}
        self._killer: WorkerKiller | None = None

    def step_started(self, step: Step[Any], why: str) -> None:
        if step.app != "spark":
            return
        before = self.losses[step.name] = self.cluster.num_lost()
        self._killer = WorkerKiller(lambda: self._look(step.name), lambda: self.cluster.num_lost() > before)
        self._killer.start()

    def _look(self, step: str) -> list[psutil.Process]:
        """Where workers are looked for. An executor that has one at work in this step is killed instead, once."""
        executors = self.cluster.executors()
        if step == "dedup" and not self.killed_executor:
            working = [one for one in executors if workers_below(one)]
            if working:
                working[0].kill()
                self.killed_executor = True
            return []
        return executors

    def step_event(self, step: Step[Any], event: dict[str, Any]) -> None: ...

    def step_ended(self, step: Step[Any], result: StepResult, handle: Handle | None) -> None:
        if self._killer is not None:
            self._killer.stop()
            self._killer = None
            self.losses[step.name] = self.cluster.num_lost() - self.losses[step.name]


def _wait_for(log: Path, words: str, times: int) -> None:
    until = time.monotonic() + 90
    while len(re.findall(words, log.read_text())) < times:
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.mark.long
def test_seven_partitions_other_hash_seed_and_files_in_another_order_give_the_same_manifests(
    prepare: Callable[..., dict[str, str]], one_core: dict[str, str], texts: Path, tmp_path: Path
) -> None:
    shuffled = tmp_path / "texts"
    shuffled.mkdir()
    for path in sorted(texts.iterdir(), reverse=True):
        (shuffled / path.name).write_bytes(path.read_bytes())
    spec = {"NIGHTMILL_SPARK_MASTER": "local[3]", "NIGHTMILL_SPARK_PARTITIONS": "7", "PYTHONHASHSEED": "1"}
    shuffled.rename(tmp_path / "moved")
    texts.rename(tmp_path / "first")  # a spec holds the path: the shuffled folder takes its place
    (tmp_path / "moved").rename(texts)
    assert prepare(texts, **spec) == one_core


@pytest.mark.long
def test_standalone_cluster_that_loses_workers_gives_the_same_manifests(
    prepare: Callable[..., dict[str, str]], one_core: dict[str, str], texts: Path, cluster: Cluster
) -> None:
    settings = {
        "NIGHTMILL_SPARK_MASTER": cluster.address,
        "NIGHTMILL_SPARK_MEMORY": "1g",
        "NIGHTMILL_SPARK_PARTITIONS": "3",
    }
    disturber = Disturber(cluster)
    assert prepare(texts, (disturber,), SPARK_LOCAL_IP="127.0.0.1", **settings) == one_core
    assert disturber.killed_executor
    assert sum(loss > 0 for loss in disturber.losses.values()) >= 2, disturber.losses  # some steps are over too soon
