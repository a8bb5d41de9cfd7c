"""`<workspace>/champion.json`: which model folder answers to `champion` now. What servers follow.

Replaced whole, by rename, so that a reader sees the old or the new one. It repeats what `ledger.jsonl` decided and is written again
from it where the two differ. A reader that has seen a fence ignores a pointer with a lower one: it is of a writer that came late.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from spark_jobs.errors import DataError
from spark_jobs.manifests import Frozen

POINTER = "champion.json"


class ChampionPointer(Frozen):
    """The model folder that is champion, and the decision that made it so."""

    address: str = Field(description="Of the model folder in the workspace, e.g. models/export-3f9a1c0b77d2e415.")
    digest: str = Field(description="sha256 of the folder's manifest.")
    version: str = Field(description="In MLflow's registry, under the pipeline's name.")
    fence: int = Field(ge=0, description="Of the decision: a later one has a higher number. 0: before there were any.")
    night: str = Field(description="Logical night of the decision, YYYY-MM-DD.")


def read_pointer(workspace: Path) -> ChampionPointer | None:
    """The pointer of a workspace's folder; None before the first champion.

    Raises: DataError if the file is not a pointer.
    """
    path = workspace / POINTER
    try:
        return ChampionPointer.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as err:
        raise DataError(
            f"{path}: not a pointer to a champion ({err.errors()[0]['msg']}); write it again with `nightmill promote PRESET --repair`"
        ) from err
