"""Ranks on several machines: who meets where, and what is called out there.

NIGHTMILL_NODES          machines that train together, default 1; the ranks of a spec are shared out evenly
NIGHTMILL_RENDEZVOUS     host:port of the machine that runs the night; it listens there while it trains
NIGHTMILL_NODE_ADDRESS   how the others reach this machine, default its full name; a pod's IP on Kubernetes
NIGHTMILL_GATHER_S       how long the first machine waits for the others, default 1800 (a GPU node that an autoscaler has to start)

The first machine opens torch's own key-value store at the rendezvous, writes there what is to be trained, and waits until the
others have come. They run `python -m training.node`. From then on it is torch elastic, as with torchrun on each machine. All
of them see the workspace under the same path; checkpoints and outputs are written there.

The store and the ranks' own connections know no password: keep the port inside a private network (docs/operating.md).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

from pydantic import Field
from torch._C._distributed_c10d import TCPStore

import training
from spark_jobs import errors, manifests, requests
from spark_jobs.errors import JobCrashed, RequestError
from spark_jobs.manifests import Frozen
from spark_jobs.requests import Request

NODES, RENDEZVOUS = "NIGHTMILL_NODES", "NIGHTMILL_RENDEZVOUS"
ADDRESS, GATHER = "NIGHTMILL_NODE_ADDRESS", "NIGHTMILL_GATHER_S"
CALL, COME, REFUSED = "nightmill/call", "nightmill/come", "nightmill/refused"
STORE_S = 30.0  # for one answer of the store


class Meeting(Frozen):
    """How many machines meet, and where."""

    nodes: int = Field(ge=1)
    host: str
    port: int

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def own_address(self) -> str | None:
        """Of this machine, for the others; None leaves it to torch, which takes the full name."""
        on_loopback = self.host in ("localhost", "127.0.0.1")
        return os.environ.get(ADDRESS) or ("localhost" if on_loopback else None)


class Call(Frozen):
    """What the first machine asks the others to train. run: unlike that of any other start. shared: folder for what ranks have
    to tell across machines. code: of the first machine, as `code_mark` gives it."""

    run: str
    request: Request
    nodes: int
    shared: str
    code: str


def meeting_of_environment() -> Meeting | None:
    """None on one machine. Raises: RequestError naming the variable that is wrong."""
    told = os.environ.get(NODES, "1")
    if not told.isdecimal() or int(told) == 0:
        raise RequestError(f"{NODES}={told}: wanted a number of machines, 1 or more")
    if int(told) == 1:
        return None
    return meeting_at(int(told))


def meeting_at(nodes: int) -> Meeting:
    """Raises: RequestError if NIGHTMILL_RENDEZVOUS is no host and port."""
    where = os.environ.get(RENDEZVOUS, "")
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal():
        raise RequestError(f"{RENDEZVOUS}={where!r}: wanted host:port of the machine that runs the night")
    return Meeting(nodes=nodes, host=host, port=int(port))


def ranks_a_node(ranks: int, nodes: int) -> int:
    """Raises: RequestError if they cannot be shared out evenly."""
    if ranks % nodes:
        raise RequestError(
            f"{ranks} ranks cannot be shared out evenly over {NODES}={nodes}: make one a multiple of the other"
        )
    return ranks // nodes


@contextmanager
def called(meeting: Meeting, request: Request) -> Iterator[Call]:
    """On the first machine: the store is open while inside, the call is written, and all the others have come.

    Raises: RequestError if the port is taken or a machine has other code; JobCrashed if one did not come in time.
    """
    call = Call(
        run=uuid.uuid4().hex,
        request=request,
        nodes=meeting.nodes,
        shared=str(Path(request.out) / "scratch" / "nodes"),
        code=code_mark(),
    )
    try:
        store = TCPStore(
            "localhost", meeting.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=STORE_S)
        )
    except RuntimeError as err:
        raise RequestError(
            f"{RENDEZVOUS}={meeting.endpoint}: this machine cannot listen there ({str(err).splitlines()[0]}); another training "
            "may run, or name another port"
        ) from err
    store.set(CALL, call.model_dump_json())
    _wait_for_others(store, meeting)
    yield call


def _wait_for_others(store: TCPStore, meeting: Meeting) -> None:
    wait_s = float(os.environ.get(GATHER, "1800"))
    deadline = time.monotonic() + wait_s
    while (there := store.add(COME, 0)) < meeting.nodes - 1:
        if store.check([REFUSED]):
            raise RequestError(store.get(REFUSED).decode())
        if time.monotonic() > deadline:
            raise JobCrashed(
                f"{there} of {meeting.nodes - 1} other machines came to {meeting.endpoint} in {wait_s:.0f} s; run "
                f"`python -m training.node` on each, with {RENDEZVOUS}={meeting.endpoint}"
            )
        time.sleep(0.1)


def answer_call(meeting: Meeting, previous: str) -> Call | None:
    """On another machine: what the first one calls for, after saying that this one has come; None if it still is the call of run
    `previous`.

    Raises: RequestError if this machine's code is not the first one's; the first one is told.
    """
    store = TCPStore(
        meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=STORE_S)
    )
    call = Call.model_validate_json(store.get(CALL))
    if call.run == previous:
        return None
    if call.code != code_mark():
        told = (
            f"machine {socket.gethostname()} has other code or another torch than the one that runs the night: install the same "
            "version on both, and run again"
        )
        store.set(REFUSED, told)
        raise RequestError(told)
    store.add(COME, 1)
    return call


def answer_file(shared: Path) -> Path:
    """What rank 0 answered, on whichever machine it was."""
    return shared / "answer.json"


@functools.cache
def code_mark() -> str:
    """Digest of the code that trains, with the releases of what it trains with."""
    found = hashlib.sha256(json.dumps([version(name) for name in ("torch", "transformers")]).encode())
    folder = Path(training.__path__[0])
    for path in [*sorted(folder.rglob("*.py")), *(Path(str(told.__file__)) for told in (errors, manifests, requests))]:
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
