"""What the release step is asked to do."""

from __future__ import annotations

from pydantic import Field

from spark_jobs.manifests import Frozen


class ReleaseSpec(Frozen):
    smoke_prompt: str = Field(
        "The", min_length=1, description="A version becomes champion only after it was loaded and continued this text."
    )
    smoke_tokens: int = Field(16, ge=1, le=256, description="Tokens generated in that test.")
