"""Settings of this machine, as environment variables for us and every child. They never change what is computed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from spark_jobs.errors import DiskFull
from tasks.workspace import home

MIN_FREE_BYTES = 1 << 30


def setup_folder() -> Path:
    """What `nightmill setup` made once for this installation: Java wrapper, class archive, database templates."""
    return Path(sys.prefix) / "share" / "nightmill"


def set_environment() -> None:
    """Fill in what is not set: absolute home, no telemetry, no hub, no pickle. Call once, before heavy imports."""
    archive = setup_folder() / "spark.jsa"
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # our own message says it once; the run's log has the rest
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_MODEL_CATALOG_URI": "",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    if archive.is_file():
        defaults["NIGHTMILL_SPARK_CDS"] = str(archive)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ["NIGHTMILL_HOME"] = str(home())


def require_free_disk(folder: Path, wanted_bytes: int = MIN_FREE_BYTES) -> None:
    """Raises: DiskFull before any work is done if the disk of `folder` has less room than `wanted_bytes`."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted_bytes:
        raise DiskFull(
            f"{folder}: {free / 2**30:.1f} GiB free, wanted at least {wanted_bytes / 2**30:.1f} GiB; free some space or set "
            "NIGHTMILL_HOME to a larger disk"
        )
