"""The same data jobs on one core, on seven partitions, and (reading and cleaning) on a standalone cluster of two workers:
the same manifests."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyspark
import pytest

from flows.prepare_corpus import prepare_corpus
from flows.specs import NightlySpec, load_spec
from spark_jobs.java import find_java
from tasks.data_steps import clean_documents, ingest_documents
from tasks.engine import Engine, engine_in_use
from tasks.machine import set_environment
from tasks.workspace import Workspace

NIGHT = "2026-11-25"
TINY = Path(__file__).parent.parent / "fixtures" / "tiny.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, write_topics: Callable[..., Path]) -> Path:
    return write_topics(tmp_path_factory.mktemp("texts"), nights=2, per_night=30)


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Run the data jobs of a night in a home of its own; returns the digest of each step's manifest."""

    def prepare(
        texts: Path, run: Callable[[NightlySpec, str], object] = prepare_corpus.fn, **environment: str
    ) -> dict[str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NIGHTMILL_HOME", str(tmp_path_factory.mktemp("home")))
            for name, value in environment.items():
                patch.setenv(name, value)
            set_environment()
            spec = load_spec(str(TINY), [f"ingest.sources.0.path={texts}"])
            workspace = Workspace.of(spec.name)
            with engine_in_use(Engine(workspace, NIGHT)):
                run(spec, NIGHT)
            return {step: entry.digest for step, entry in workspace.record(NIGHT).outputs.items()}

    return prepare


@pytest.fixture(scope="module")
def one_core(prepare: Callable[..., dict[str, str]], texts: Path) -> dict[str, str]:
    return prepare(texts, NIGHTMILL_SPARK_MASTER="local[1]", NIGHTMILL_SPARK_PARTITIONS="1", PYTHONHASHSEED="0")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Address of a standalone master on loopback with two workers of one core."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"spark://127.0.0.1:{port}"
    environment = os.environ | {
        "JAVA_HOME": str(find_java(tmp_path / "java")),
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
        yield address
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


def _wait_for(log: Path, words: str, times: int) -> None:
    until = time.monotonic() + 90
    while len(re.findall(words, log.read_text())) < times:
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.2)


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


def test_standalone_cluster_of_two_workers_reads_and_cleans_to_the_same_manifests(
    prepare: Callable[..., dict[str, str]], one_core: dict[str, str], texts: Path, cluster: str
) -> None:
    settings = {"NIGHTMILL_SPARK_MASTER": cluster, "NIGHTMILL_SPARK_MEMORY": "1g", "NIGHTMILL_SPARK_PARTITIONS": "3"}
    made = prepare(texts, read_and_clean, SPARK_LOCAL_IP="127.0.0.1", **settings)
    assert made == {step: one_core[step] for step in ("ingest", "clean")}


def read_and_clean(spec: NightlySpec, _night: str) -> None:
    clean_documents(ingest_documents(spec.ingest, None), spec.clean)
