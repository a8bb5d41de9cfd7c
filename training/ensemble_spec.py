"""Several fine-tunings that differ in their seed, as one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from spark_jobs.manifests import Frozen

# Tasks whose predictions have a mean that is a prediction: probabilities, or numbers.
AVERAGED = ("classification", "relation", "multi_label", "ranking", "similarity", "regression")


class EnsembleSpec(Frozen):
    """Each seed is a training of its own; members, mean probabilities and mean weights are all scored."""

    seeds: tuple[int, ...] = Field(
        (0, 1, 2), min_length=2, max_length=64, description="Of the members; each another one."
    )
    average: Literal["probabilities", "weights"] = Field(
        "probabilities",
        description="What the report's scores are of. probabilities: every member answers. weights: one model, arXiv:2203.05482.",
    )

    @field_validator("seeds")
    @classmethod
    def each_another(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"ensemble.seeds {list(seeds)}: wanted different numbers, 0 or more")
        return seeds
