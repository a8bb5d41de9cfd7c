"""A night on a cluster in miniature against the same night on one machine: is every output the same, byte for byte?

    python -m benchmarks.cluster [--home FOLDER]

All at once, on loopback: Postgres for Prefect and MLflow, both servers and the two workers of `nightmill up`, a standalone Spark
cluster (a master and two workers), a Dask scheduler with two workers, and a second machine for training (`python -m
training.node`, which meets the first over torch's rendezvous). The nightly deployment is started through Prefect; its sub-flows
go out through the pools `cpu` and `gpu`. Then the same night embedded: SQLite, Spark local, both ranks in one launcher, no Dask.

Compared are the digests of all outputs that the night's record names. Steps that measure time (`measure-*`) and those that read
such a measurement may differ, as times do, and are listed. Ends with one JSON line: {"same", "different", "timed", "cluster_s",
"embedded_s", "spark_executors", "dask_workers_used", "nodes", "mlflow_runs", "prefect_flow_runs"}.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.nights import topics
from benchmarks.ports import free_port
from benchmarks.postgres import postgres

NIGHT = "2026-11-25"
PRESET = Path(__file__).with_name("cluster.yaml")
EVERYDAY = Path(__file__).parent.parent / "examples" / "benchmarks" / "everyday"
ROOT = Path(__file__).parent.parent
# What holds measured times, or shows them, or when it was released: the same in two runs only by chance.
TIMED = re.compile(r"^(measure-(?!overlap)|choose$|report-evaluation$|release$)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="kept afterwards; default: a temporary folder")
    parser.add_argument("--ask", type=Path, metavar="SPEC", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.ask:
        ask_for_night(json.loads(asked.ask.read_text()))
        return
    with tempfile.TemporaryDirectory() as folder:
        home = (asked.home or Path(folder)).resolve()
        print(json.dumps(compare(home)))


def compare(home: Path) -> dict[str, Any]:
    """Both nights, and what their outputs have in common."""
    texts = home / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) for text in topics()[:600]]
    (texts / "night.jsonl").write_text("\n".join(lines) + "\n")
    settings = [f"ingest.sources.0.path={texts}", f"evaluate.benchmarks.0.folder={EVERYDAY}"]
    machine = os.environ | {"NIGHTMILL_THREADS": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    facts, cluster_s = on_cluster(home / "cluster", settings, machine)
    embedded_s = embedded(home / "embedded", settings, machine)
    wide, narrow = digests(home / "cluster"), digests(home / "embedded")
    for step in sorted(wide.keys() | narrow.keys()):
        print(
            f"  {step:<28} {'same' if wide.get(step) == narrow.get(step) else 'DIFFERENT'}  {wide.get(step, 'missing')[:16]}"
        )
    apart = sorted(step for step in wide.keys() | narrow.keys() if wide.get(step) != narrow.get(step))
    return {
        "same": len(wide.keys() & narrow.keys()) - len(apart), "different": [s for s in apart if not TIMED.match(s)],
        "timed": [s for s in apart if TIMED.match(s)], "cluster_s": round(cluster_s, 1), "embedded_s": round(embedded_s, 1),
    } | facts  # fmt: skip


def digests(home: Path) -> dict[str, str]:
    """Of each output of the night."""
    record = json.loads((home / "workspaces" / "cluster" / "nights" / f"{NIGHT}.json").read_text())
    return {step: parent["digest"] for step, parent in record["outputs"].items()}


def embedded(home: Path, settings: list[str], machine: dict[str, str]) -> float:
    started = time.monotonic()
    words = [word for setting in settings for word in ("--set", setting)]
    with (home.parent / "embedded.log").open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "flows", "run", str(PRESET), "--night", NIGHT, "--json", *words],
            env=machine | {"NIGHTMILL_HOME": str(home)}, cwd=ROOT, stdout=log, stderr=log, check=True,
        )  # fmt: skip
    return time.monotonic() - started


def on_cluster(home: Path, settings: list[str], machine: dict[str, str]) -> tuple[dict[str, Any], float]:
    """The night on the whole of it. Returns facts about who worked, and the night's seconds without the start of servers."""
    logs = home / "cluster-logs"
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        for name in ("prefect", "mlflow"):
            database.create_database(name)
        master, rendezvous, dask = free_port(), free_port(), free_port()
        environment = machine | {
            "NIGHTMILL_HOME": str(home),
            "NIGHTMILL_PREFECT_DATABASE": database.url("prefect"),
            "NIGHTMILL_MLFLOW_DATABASE": database.url("mlflow"),
            "NIGHTMILL_SPARK_MASTER": f"spark://127.0.0.1:{master}",
            "NIGHTMILL_SPARK_DRIVER_HOST": "127.0.0.1",
            "NIGHTMILL_SPARK_MEMORY": "1g",
            "NIGHTMILL_SPARK_PARTITIONS": "4",
            "NIGHTMILL_DASK_ADDRESS": f"tcp://127.0.0.1:{dask}",
            "NIGHTMILL_NODES": "2",
            "NIGHTMILL_RENDEZVOUS": f"127.0.0.1:{rendezvous}",
        }
        stack.enter_context(spark_cluster(master, environment, logs))
        stack.enter_context(process("node", [sys.executable, "-m", "training.node"], environment, logs))
        stack.enter_context(nightmill_up(environment))
        stack.enter_context(dask_cluster(dask, environment, logs))
        started = time.monotonic()
        spec = home / "night.json"
        spec.write_text(json.dumps({"preset": str(PRESET), "settings": settings}))
        subprocess.run(
            [sys.executable, "-m", "benchmarks.cluster", "--ask", str(spec)], env=environment, cwd=ROOT, check=True
        )
        seconds = time.monotonic() - started
        tables = int(
            database.run("psql", "-d", "mlflow", "-Atc", "select count(*) from runs where status = 'FINISHED'")
        )
        flow_runs = int(
            database.run(
                "psql", "-d", "prefect", "-Atc", "select count(*) from flow_run where state_type = 'COMPLETED'"
            )
        )
    executors = len(list((logs / "spark-work").glob("app-*/*/stderr")))
    told = (logs / "node.log").read_text(errors="replace")
    asked = sum(path.is_dir() for path in (home / "workspaces/cluster/logs" / NIGHT).glob("worker-*"))
    return {
        "spark_executors": executors, "dask_workers_used": asked, "nodes": 1 + told.count("takes part in train"),
        "mlflow_runs": tables, "prefect_flow_runs": flow_runs,
    }, seconds  # fmt: skip


def ask_for_night(told: dict[str, Any]) -> None:
    """Start the nightly deployment and wait for it; in a process of its own, as Prefect reads its server's address once."""
    from tasks.machine import set_environment
    from tasks.servers import client_environment
    from tasks.workspace import home

    set_environment()
    os.environ.update(client_environment(home()))
    from prefect.deployments import run_deployment

    from flows.specs import load_spec

    spec = load_spec(told["preset"], told["settings"])
    run = run_deployment("nightly/nightly", parameters={"spec": spec.model_dump(mode="json"), "night": NIGHT})
    if not run.state.is_completed():
        raise SystemExit(f"the night ended as {run.state.type.value}: {run.state.message}")
    print("  the night on the cluster is done", flush=True)


@contextmanager
def spark_cluster(port: int, environment: dict[str, str], logs: Path) -> Iterator[None]:
    """A master and two workers of one core each, from pyspark's own jars."""
    import pyspark

    from spark_jobs.java import find_java

    home = Path(pyspark.__file__).parent
    environment = environment | {
        "SPARK_HOME": str(home),
        "JAVA_HOME": str(find_java(logs / "java")),
        "SPARK_LOCAL_DIRS": str(logs / "spark-local"),
        "SPARK_DAEMON_MEMORY": "512m",
    }
    run = [str(home / "bin" / "spark-class")]
    master = [*run, "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(port)]
    worker = [
        *run, "org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--cores", "1", "--memory", "1g",
        "--work-dir", str(logs / "spark-work"), "--webui-port", "0", f"spark://127.0.0.1:{port}",
    ]  # fmt: skip
    with process("spark-master", [*master, "--webui-port", "0"], environment, logs):
        wait_for(port)
        with process("spark-worker-0", worker, environment, logs), process("spark-worker-1", worker, environment, logs):
            yield


@contextmanager
def dask_cluster(port: int, environment: dict[str, str], logs: Path) -> Iterator[None]:
    """A scheduler and two workers that know the Prefect server, as tasks run in them."""
    os_environ = environment | _clients(environment)
    base = [sys.executable, "-m"]
    scheduler = [*base, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [
        *base, "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--host", "127.0.0.1", "--nworkers", "1",
        "--nthreads", "1", "--no-dashboard", "--memory-limit", "0",
    ]  # fmt: skip
    with process("dask-scheduler", scheduler, os_environ, logs):
        wait_for(port)
        with process("dask-worker-0", worker, os_environ, logs), process("dask-worker-1", worker, os_environ, logs):
            yield


def _clients(environment: dict[str, str]) -> dict[str, str]:
    from tasks.servers import client_environment

    return client_environment(Path(environment["NIGHTMILL_HOME"]))


@contextmanager
def nightmill_up(environment: dict[str, str]) -> Iterator[None]:
    """Both servers on free ports, deployments, and a worker a pool."""
    command = [sys.executable, "-m", "flows"]
    ports = ["--port", str(free_port()), "--mlflow-port", str(free_port())]
    try:
        subprocess.run([*command, "up", *ports], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        yield
    finally:
        subprocess.run([*command, "down"], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)


@contextmanager
def process(name: str, argv: list[str], environment: dict[str, str], logs: Path) -> Iterator[None]:
    """A process in a group of its own, its output in a file; the group is gone at the end."""
    with (logs / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def wait_for(port: int, seconds: float = 120.0) -> None:
    """Until something listens there. Raises: TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port} after {seconds:.0f} s")


if __name__ == "__main__":
    main()
