"""How long a pipeline keeps what it made."""

from __future__ import annotations

from pydantic import Field

from spark_jobs.manifests import Frozen


class RetentionSpec(Frozen):
    """What maintenance leaves. Decisions, requests to forget and records of nights are never removed: they are small."""

    keep_nights: int = Field(14, ge=1, description="Newest nights whose outputs all stay, failed nights included.")
    keep_champions: int = Field(
        3, ge=1, description="Newest models that were champion: they, what they were made from and judged by, stay."
    )
    keep_hours: float = Field(
        48.0, ge=0, description="Whatever was written in so many hours stays, as a run may be using it."
    )
    log_days: int = Field(60, ge=1, description="Days that the logs of a night stay.")
