"""The web application: routes, errors, health, metrics, and what runs beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from training.serve import chat, completions, texts
from training.serve.desk import Desk
from training.serve.door import Door
from training.serve.failures import handle_errors
from training.serve.follow import Follower
from training.serve.hub import Hub
from training.serve.keys import Buckets, Keys
from training.serve.measures import Measures
from training.serve.request_log import CLIENT_GONE, RequestLog
from training.serve.serve_spec import ServeSpec
from training.serve.traffic import Traffic
from training.serve.writing import ClientGone


@dataclass(frozen=True)
class Surroundings:
    """What the server writes and reads besides models. keys None: no keys are asked for; traffic None: not counted."""

    log: str = ""
    keys: Path | None = None
    buckets: Path | None = None
    traffic: Path | None = None


def build_app(
    hub: Hub, spec: ServeSpec, around: Surroundings, measures: Measures, follower: Follower | None
) -> FastAPI:
    """follower None: the model stays what it is."""
    traffic = Traffic(around.traffic, spec.watch_every, spec.flush_s)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        beside = [asyncio.create_task(traffic.run())]
        if follower is not None:
            beside.append(asyncio.create_task(follower.run()))
        yield
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await traffic.close()
        with suppress(Exception):
            await hub.close()

    app = FastAPI(title="Nightmill", version="1", lifespan=life, docs_url=None, redoc_url=None)
    app.state.desk = Desk(hub, spec, measures, traffic)
    app.state.loaded = int(time.time())
    handle_errors(app)

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(ClientGone, gone)
    for module in (completions, chat, texts):
        app.include_router(module.router)
    add_models(app)
    add_health(app)
    app.add_middleware(
        Door, max_body_bytes=spec.max_body_bytes, keys=Keys(around.keys) if around.keys else None,
        buckets=Buckets(around.buckets) if around.keys and around.buckets else None,
        log=RequestLog(around.log), measures=measures,
    )  # fmt: skip
    return app


def add_models(app: FastAPI) -> None:
    hub: Hub = app.state.desk.hub

    def entry(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": app.state.loaded, "owned_by": "nightmill"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The pipeline's name, which whichever version is champion answers to, and that version's own name."""
        identity = hub.current.identity
        return {"object": "list", "data": [entry(name) for name in dict.fromkeys((identity.name, identity.model))]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        hub.find(model)
        return entry(model)


def add_health(app: FastAPI) -> None:
    desk: Desk = app.state.desk
    hub = desk.hub

    def alive() -> bool:
        return hub.current.engine is None or hub.current.engine.is_alive()

    def state(ok: bool) -> JSONResponse:
        return JSONResponse({"status": "ok" if ok else "failing"}, 200 if ok else 503)

    @app.get("/health/live")
    async def live() -> JSONResponse:
        """503 if the engine is dead: the process should be started again."""
        return state(alive())

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        """503 while the server ends, and where no answer could be begun."""
        return state(alive() and not hub.draining)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Which model answers, and which champion could not be loaded, if one could not."""
        identity = hub.current.identity
        word = "failing" if not alive() else "draining" if hub.draining else "degraded" if hub.rejected else "ok"
        return JSONResponse(
            {
                "status": word, "model": identity.model, "system_fingerprint": identity.fingerprint,
                "fence": identity.fence, "running": hub.running, "swaps": hub.swaps,
                "rejected": hub.rejected.model_dump() if hub.rejected else None,
            },
            503 if word == "failing" else 200,
        )  # fmt: skip

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(desk.measures.text), media_type="text/plain; version=0.0.4")
