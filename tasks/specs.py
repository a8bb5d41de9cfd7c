"""What the release step is asked to do."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spark_jobs.manifests import Frozen


class ReleaseSpec(Frozen):
    smoke_prompt: str = Field(
        "The", min_length=1, description="A version becomes champion only after it was loaded and continued this text."
    )
    smoke_tokens: int = Field(16, ge=1, le=256, description="Tokens generated in that test.")
    approval: Literal["none", "human"] = Field(
        "none", description="human: a candidate that passed the gate waits for a person to promote it."
    )
    approval_hours: float = Field(
        24.0, gt=0, le=24 * 30, description="How long it waits; after that the champion stays."
    )
