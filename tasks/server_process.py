"""One server process: `python -m tasks.server_process prefect|mlflow`.

Both servers ship a command line of their own; this entry is two to six times faster because it imports what is served
and nothing else, once, with the garbage collector off while modules load (measured in docs/adr/0006-server-processes.md). It is
handed a listening socket, so the port cannot be lost between choosing and binding it, and clients that connect early
wait in the backlog instead of being refused.
"""

from __future__ import annotations

import gc
import os
import re
import socket
import sys
from typing import Any

LISTEN_FD = "NIGHTMILL_LISTEN_FD"
HOSTS = ("127.0.0.1", "localhost")
# Of MLflow, never used here, and each a way to make the server call an address or run a job: see SECURITY.md.
CLOSED = re.compile(r"/+(gateway|((ajax-)?api/[0-9.]+/(mlflow/)?(webhooks|gateway|gateway-proxy|jobs|assistant)))(/|$)")
# MLflow's pages ask for these and show an error where they are refused: the answers say that there is no assistant and no gateway.
NOTHING_THERE = {
    "/ajax-api/3.0/mlflow/assistant/config": {"providers": {}, "projects": {}, "remote_access_allowed": False},
    "/ajax-api/3.0/mlflow/assistant/providers": {"providers": [], "resolved": None, "gateway_vendor_options": {}},
    "/ajax-api/2.0/mlflow/gateway-proxy": {"endpoints": []},
}
SHUTDOWN_S = 3  # open connections (event streams never end by themselves) get this long after SIGTERM


def main(name: str) -> None:
    gc.disable()
    import uvicorn

    app = prefect_app() if name == "prefect" else mlflow_app()
    gc.collect()
    gc.freeze()  # what was imported lives as long as the process: no need to look through it again
    gc.enable()
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_S)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(os.environ[LISTEN_FD]))])


def prefect_app() -> Any:
    """The API of `prefect server start`. With PREFECT__SERVER_EPHEMERAL=1: no UI, no scheduler, no clean-up services.

    Prefect looks at no Host header: a page elsewhere whose name is pointed at loopback could ask it.
    """
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    import tasks.email_block  # noqa: F401  a block that automations name has to be known here

    return TrustedHostMiddleware(create_app(final=True), allowed_hosts=list(HOSTS))


def mlflow_app() -> Any:
    """What `mlflow server --workers 1` serves, configured by the environment variables that command sets."""
    import warnings

    warnings.filterwarnings("ignore", message="starlette.middleware.wsgi")
    from mlflow.server.fastapi_app import app

    return Closed(app)


class Closed:
    """An ASGI application without the paths of `CLOSED`: they answer 403, or as a server without them; nothing behind them runs."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not CLOSED.match(scope["path"]):
            await self.app(scope, receive, send)
            return
        from starlette.responses import JSONResponse, PlainTextResponse

        if scope["method"] == "GET" and scope["path"] in NOTHING_THERE:
            await JSONResponse(NOTHING_THERE[scope["path"]])(scope, receive, send)
            return
        await PlainTextResponse("switched off here, see SECURITY.md", status_code=403)(scope, receive, send)


if __name__ == "__main__":
    main(sys.argv[1])
