"""One of several machines that train together, but not the one that runs the night: `python -m training.node`.

    NIGHTMILL_RENDEZVOUS=host:port python -m training.node          takes part in every training until it is stopped
    NIGHTMILL_RENDEZVOUS=host:port python -m training.node --once   takes part in one

It waits until the first machine calls (training/pretrain/nodes.py), starts its share of the ranks, and waits again. When the
first machine is gone, its ranks here are ended. It takes jobs by name from a table, never code.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

from spark_jobs.errors import RequestError
from training.processes import die_with_parent, work_and_exit
from training.run import JOBS, import_for, import_libraries

SHARED_JOBS = ("train", "finetune")  # those whose ranks may be on several machines
POLL_S = 0.5
GRACE_S = 15.0  # for ranks here to end by themselves once the first machine is gone


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.node", description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true", help="leave after one training")
    once = parser.parse_args().once
    from training.pretrain.nodes import code_mark, meeting_at

    meeting = meeting_at(2)
    code_mark()  # of what is imported now, whatever is installed later
    import_libraries()
    import_for("finetune")
    _say(f"waits for a training at {meeting.endpoint}")
    previous = ""
    while True:
        line = _first_machine(meeting.host, meeting.port)
        previous, status = _take_part(line, previous)
        if status is not None:
            _say("done" if status == 0 else "its part of the training failed; the first machine's log says why")
            if once:
                return status


def _first_machine(host: str, port: int) -> socket.socket:
    """A connection that ends when the first machine's training does; waits until there is one."""
    while True:
        with suppress(OSError):
            return socket.create_connection((host, port), timeout=5.0)
        time.sleep(POLL_S)


def _take_part(line: socket.socket, previous: str) -> tuple[str, int | None]:
    """Answer the call in a child, which starts the ranks. Returns the call's run, and how it ended: None if it was the previous
    one, which is over for this machine."""
    told, telling = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        line.close()
        os.close(told)
        work_and_exit(lambda: _node_process(telling, previous, parent))
    os.close(telling)
    try:
        status = _wait_for(child, line)
        run = os.read(told, 64).decode()
    finally:
        os.close(told)
        line.close()
    if run == previous:
        time.sleep(POLL_S)
        return run, None
    return run, os.waitstatus_to_exitcode(status)


def _wait_for(child: int, line: socket.socket) -> int:
    """The child's exit status; it is killed, and with it its ranks, if it outlives the first machine by GRACE_S."""
    gone_since: float | None = None
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        if gone_since is None and _is_closed(line):
            gone_since = time.monotonic()
        if gone_since is not None and time.monotonic() > gone_since + GRACE_S:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.1)


def _is_closed(line: socket.socket) -> bool:
    if not select.select([line], [], [], 0)[0]:
        return False
    try:
        return line.recv(1) == b""
    except OSError:
        return True


def _node_process(telling: int, previous: str, parent: int) -> int:
    die_with_parent(parent)
    try:
        return _node(telling, previous)
    except RequestError as err:
        _say(str(err))
        return 1


def _node(telling: int, previous: str) -> int:
    """Raises: RequestError for a job that is not shared, or other code than the first machine's."""
    from training.pretrain.launch import launch_share
    from training.pretrain.nodes import answer_call, meeting_at

    meeting = meeting_at(2)
    call = answer_call(meeting, previous)
    os.write(telling, (call.run if call else previous).encode())
    if call is None:
        return 0
    if call.request.job not in SHARED_JOBS:
        raise RequestError(f"job {call.request.job!r} is not one that machines share: {', '.join(SHARED_JOBS)}")
    module = importlib.import_module(JOBS[call.request.job])
    _say(f"takes part in {call.request.job} of night {call.request.night}, on {call.nodes} machines")
    launch_share(call, meeting.model_copy(update={"nodes": call.nodes}), module.SPEC, module.train)
    return 0


def _say(text: str) -> None:
    print(f"node {socket.gethostname()}: {text}", flush=True)  # noqa: T201


if __name__ == "__main__":
    raise SystemExit(main())
