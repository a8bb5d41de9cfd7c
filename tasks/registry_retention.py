"""Versions of a registered model that nobody needs any more: their copies of the weights go, what they were stays on record.

Kept are versions with an alias, those of models whose folders the workspace keeps, and any that the ledger does not know.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.retention import Removal
from tasks.servers import servers_folder
from tasks.workspace import Workspace, home

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL = "nightmill.model"  # tag of a version: address of its folder in the workspace


def retired_versions(client: MlflowClient, workspace: Workspace, kept: set[str]) -> list[Any]:
    """Versions whose model folder is not among `kept` (addresses), without an alias; oldest first."""
    versions = client.search_model_versions(f"name = '{workspace.name}'")
    crowned = {str(v) for v in _aliases(client, workspace.name).values()}
    gone = [v for v in versions if str(v.version) not in crowned and v.tags.get(MODEL) and v.tags[MODEL] not in kept]
    return sorted(gone, key=lambda v: int(v.version))


def remove_version(client: MlflowClient, version: Any) -> Removal:
    """Delete the version and its logged model, then the files, if they lie where our own server keeps them."""
    model_id = version.source.removeprefix("models:/")  # a version read back has no `model_id` of its own
    logged = client.get_logged_model(model_id) if model_id.startswith("m-") else None
    client.delete_model_version(version.name, version.version)
    size = 0
    if logged is not None:
        folder = Path(logged.artifact_location.removeprefix("file://"))
        client.delete_logged_model(model_id)
        if folder.is_relative_to(servers_folder(home())) and folder.is_dir():
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder)
    return Removal(path=f"models:/{version.name}/{version.version}", what="registered version", size_bytes=size)


def _aliases(client: MlflowClient, name: str) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException:
        return {}
