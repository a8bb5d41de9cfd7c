"""Ranks on two machines (here: two launchers on loopback) against the same ranks on one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.distributed import TCPStore

from spark_jobs.errors import JobCrashed, RequestError
from spark_jobs.requests import Request
from training.pretrain.nodes import (
    CALL,
    REFUSED,
    Call,
    Meeting,
    answer_call,
    called,
    meeting_of_environment,
    ranks_a_node,
)

TRAIN: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64},
    "num_steps": 8,
    "continue_steps": 4,
    "sequences_per_step": 4,
    "micro_batch": 2,
    "ranks": 2,
    "checkpoint_every": 4,
}


def published(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def endpoint() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def node(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The other machine, and what it prints."""
    log = tmp_path_factory.mktemp("node") / "node.log"
    environment = os.environ | {"NIGHTMILL_RENDEZVOUS": endpoint, "NIGHTMILL_THREADS": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.node"], env=environment, stdout=output, stderr=output
        )
    yield process, log
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def first_machine(endpoint: str, engine_told: Any) -> Any:
    return engine_told(
        NIGHTMILL_NODES="2", NIGHTMILL_RENDEZVOUS=endpoint, NIGHTMILL_GATHER_S="40", NIGHTMILL_THREADS="1"
    )


def test_two_machines_train_to_the_bytes_of_one(engine, first_machine, node, world, tmp_path) -> None:
    *_, alone = engine.start("train", TRAIN, tmp_path / "train-0001", **world.inputs())
    assert "outcome" in alone
    messages = list(first_machine.start("train", TRAIN, tmp_path / "train-0002", **world.inputs()))
    assert messages[-1] == alone, node[1].read_text()
    assert [m["event"]["step"] for m in messages if "event" in m] == list(range(1, 9))
    assert published(tmp_path / "train-0002") == published(tmp_path / "train-0001")


def test_ranks_of_the_other_machine_end_when_the_first_is_killed(first_machine, node, world, tmp_path) -> None:
    out, ranks = tmp_path / "train-0004", []
    spec = TRAIN | {"num_steps": 2000, "checkpoint_every": 1000}
    for message in first_machine.start("train", spec, out, **world.inputs()):
        if message.get("event", {}).get("step", 0) >= 4 and not ranks:
            ranks = psutil.Process(node[0].pid).children(recursive=True)
            (launcher,) = psutil.Process(first_machine.process.pid).children()
            launcher.kill()
    assert message["failure"]["error"] == "JobCrashed"
    assert len(ranks) == 2  # its launcher and one rank
    assert not psutil.wait_procs(ranks, timeout=30)[1]
    assert node[0].poll() is None


def test_training_that_all_ranks_give_up_says_why(first_machine, node, world, tmp_path) -> None:
    spec = TRAIN | {"optimizer": {"learning_rate": 1e30}}
    error, message = first_machine.fail("train", spec, tmp_path / "train-0005", **world.inputs())
    assert error == "TrainingError"
    assert "Lower optimizer.learning_rate" in message


def test_machine_that_does_not_come_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("NIGHTMILL_GATHER_S", "0.2")
    meeting = Meeting(nodes=2, host="127.0.0.1", port=free_port())
    request = Request(job="train", spec={}, out=str(tmp_path), night="2026-01-01")
    with pytest.raises(JobCrashed, match="0 of 1 other machines came"), called(meeting, request):
        pass


def test_machine_with_other_code_is_refused_on_both_sides(monkeypatch, tmp_path) -> None:
    meeting = Meeting(nodes=2, host="127.0.0.1", port=free_port())
    call = Call(run="a", request=Request(job="train", spec={}, out="", night=""), nodes=2, shared="", code="other")
    store = TCPStore("localhost", meeting.port, is_master=True, wait_for_workers=False)
    store.set(CALL, call.model_dump_json())
    with pytest.raises(RequestError, match="has other code or another torch"):
        answer_call(meeting, "")
    assert "install the same version on both" in store.get(REFUSED).decode()
    assert answer_call(meeting, "a") is None  # a call that is over for this machine is not looked at


def test_ranks_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(RequestError, match="3 ranks cannot be shared out evenly over NIGHTMILL_NODES=2"):
        ranks_a_node(3, 2)


@pytest.mark.parametrize(
    ("nodes", "rendezvous", "wanted"),
    [("two", "", "NIGHTMILL_NODES=two"), ("0", "", "NIGHTMILL_NODES=0"), ("2", "here", "NIGHTMILL_RENDEZVOUS='here'")],
)
def test_meeting_that_is_spelt_wrongly_is_named(monkeypatch, nodes: str, rendezvous: str, wanted: str) -> None:
    monkeypatch.setenv("NIGHTMILL_NODES", nodes)
    monkeypatch.setenv("NIGHTMILL_RENDEZVOUS", rendezvous)
    with pytest.raises(RequestError, match=wanted):
        meeting_of_environment()
