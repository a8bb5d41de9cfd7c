"""One process of a server, `python -m training.serve.replica`: the model loaded and tried, then requests from a socket that it
was handed. All replicas take connections from that one socket, so none is lost with a replica that ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from transformers.utils.logging import disable_progress_bar

from spark_jobs.errors import NightmillError, RequestError
from training.champion_pointer import read_pointer
from training.processes import num_threads
from training.serve.app import Surroundings, build_app
from training.serve.follow import Follower, identity_of
from training.serve.hub import Hub
from training.serve.measures import Measures
from training.serve.own_thread import in_own_thread
from training.serve.plan import LISTEN_FD, PLAN, READY, Plan
from training.serve.served import Served, identity_of_folder, load, load_champion

ALIVE_S = 1.0  # between two looks whether the engine still runs


def main() -> int:
    plan = Plan.model_validate_json(os.environ[PLAN])
    try:
        return run(plan, socket.socket(fileno=int(os.environ[LISTEN_FD])))
    except NightmillError as error:
        print(f"nightmill: {error}", flush=True)  # noqa: T201 told by the supervisor
        return 2 if isinstance(error, RequestError) else 1


def run(plan: Plan, listener: socket.socket) -> int:
    """Until SIGTERM, after which running answers end first; uvicorn then raises the signal once more, so this does not return.

    Returns 1 if the engine died.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    disable_progress_bar()  # half a line of it would stand before a line of the log of requests
    threads = plan.spec.threads or num_threads(plan.replicas)
    plan = plan.model_copy(update={"spec": plan.spec.model_copy(update={"threads": threads})})
    return asyncio.run(_serve(plan, listener))


async def _serve(plan: Plan, listener: socket.socket) -> int:
    spec, measures = plan.spec, Measures()
    served = await _first(plan)
    await served.smoke()
    hub = Hub(served, spec.max_batch + spec.max_queue)
    measures.started(served.identity)
    root = Path(plan.workspace) if plan.workspace else None
    follower = Follower(partial(read_pointer, root), root, spec, hub, measures) if root else None
    around = Surroundings(
        log=plan.log,
        keys=Path(plan.keys) if plan.keys else None,
        buckets=Path(plan.run_folder) / "rates" if plan.run_folder else None,
        traffic=root / "traffic" if root else None,
    )
    app = build_app(hub, spec, around, measures, follower)
    gc.collect()
    gc.freeze()  # what was imported and loaded so far need not be looked through again
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="on",
        timeout_graceful_shutdown=int(spec.drain_s), timeout_keep_alive=75,
    )  # fmt: skip
    server = Draining(config, hub)
    watch = asyncio.create_task(_end_with_the_engine(server, hub))
    await server.serve(sockets=[listener])
    watch.cancel()
    return int(server.engine_died)


async def _first(plan: Plan) -> Served:
    """Raises: RequestError if there is nothing to serve; DataError if it cannot be."""
    if plan.folder:
        folder = Path(plan.folder)
        return await asyncio.to_thread(
            in_own_thread, lambda: load(folder, identity_of_folder(folder, plan.name), plan.spec)
        )
    pointer = read_pointer(Path(plan.workspace))
    if pointer is None:
        raise RequestError(f"pipeline {plan.name} has no champion yet in {plan.workspace}; `nightmill run` it first")
    root, identity = Path(plan.workspace), identity_of(pointer, plan.name)
    return await asyncio.to_thread(in_own_thread, partial(load_champion, root, identity, plan.spec))


class Draining(uvicorn.Server):  # type: ignore[misc]
    """Says that it ends as soon as it was asked to, and that it is ready when it is."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self.hub, self.engine_died = hub, False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(READY, flush=True)  # noqa: T201 read by the supervisor

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.hub.draining = True
        super().handle_exit(sig, frame)


async def _end_with_the_engine(server: Draining, hub: Hub) -> None:
    """A replica whose engine died answers nothing: it ends, and is started again."""
    while True:
        await asyncio.sleep(ALIVE_S)
        engine = hub.current.engine
        if engine is not None and not engine.is_alive():
            logging.getLogger("nightmill.serve").error("the engine died; this replica ends")
            server.engine_died = server.should_exit = True
            return


if __name__ == "__main__":
    sys.exit(main())
