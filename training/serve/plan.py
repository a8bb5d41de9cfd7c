"""What the supervisor tells a replica. Pydantic only."""

from __future__ import annotations

from pydantic import Field

from spark_jobs.manifests import Frozen
from training.serve.serve_spec import ServeSpec

PLAN = "NIGHTMILL_SERVE_PLAN"  # in the environment: a Plan as JSON
LISTEN_FD = "NIGHTMILL_LISTEN_FD"  # in the environment: the inherited socket
READY = "nightmill: ready"  # printed by a replica once requests are taken


class Plan(Frozen):
    """What a replica serves, and with what around it. Either `workspace`, whose champion it follows, or `folder`, a model."""

    name: str = Field("", description="Name of the model in requests; of a folder, empty: the folder's name.")
    workspace: str = ""
    folder: str = ""
    replicas: int = Field(1, ge=1, description="Processes that share the port, and the cores.")
    spec: ServeSpec = ServeSpec()
    log: str = Field("", description="File for the lines of requests; -: standard output; empty: none.")
    keys: str = ""
    run_folder: str = Field("", description="Where replicas share counts and rates.")
