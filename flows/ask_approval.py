"""Start the flow that asks a person, where there is a server to show its form."""

from __future__ import annotations

import os
import sys

from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from training.manifests import Release


def ask_for_approval(pipeline: str, night: str, release: Release) -> None:
    """Start deployment `approve-model` and do not wait for it; once for a release, however often its night is run again.

    Without a server (embedded), or outside of a flow run, there is nobody to show a form: `nightmill promote` answers all the same.
    """
    if os.environ.get("NIGHTMILL_PROFILE", "embedded") == "embedded" or FlowRunContext.get() is None:
        return
    try:
        run_deployment(
            "approve-model/approve-model",
            parameters={"pipeline": pipeline},
            timeout=0,
            flow_run_name=f"approve {pipeline} version {release.model_version} of {night}",
            idempotency_key=f"approve-{release.digest}",
            as_subflow=False,
        )
    except ObjectNotFound:  # a server that `nightmill deploy` was not run against since
        print(  # noqa: T201
            "approval: no deployment approve-model on this server, so nobody sees a form; answer by `nightmill promote`, and apply "
            "prefect.yaml by `nightmill deploy`",
            file=sys.stderr,
        )
