"""What the gate is asked: by how much, at what confidence, in which slices, and what else a new champion must keep to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spark_jobs.manifests import Frozen
from training.compress_spec import LABEL_PATTERN

SliceBy = Literal["source", "language", "length"]


class GuardSpec(Frozen):
    """Limits that a good model must keep to as well. Empty: not asked."""

    max_bytes_ratio: float | None = Field(
        None, gt=0, description="Bytes of weights on disk, candidate over champion, at most."
    )
    max_latency_ratio: float | None = Field(
        None,
        gt=0,
        description="Seconds of a written token, candidate over champion, at most; both are measured tonight.",
    )
    max_worst_slice: float | None = Field(
        None, ge=0, description="Loss in bits per byte of the slice that loses most, at most, whether proven or not."
    )


class GateSpec(Frozen):
    """Promote if the candidate is not worse than the champion by more than the margins, at the stated confidence."""

    margin: float = Field(
        0.01, ge=0, description="Largest loss in bits per byte that still passes (upper bound of the interval)."
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Of each one-sided bound; the harm of slices shares what is left of 1."
    )
    interval: Literal["studentized", "percentile"] = Field(
        "studentized",
        description="Of the bootstrap. percentile promotes worse models too often where documents are few: docs/gate.md.",
    )
    replicates: int = Field(2000, ge=100, description="Bootstrap resamples of documents.")
    min_documents: int = Field(20, ge=2, description="Fewer documents scored by both models keep the champion.")
    slices: tuple[SliceBy, ...] = Field(
        ("source", "language", "length"),
        description="What documents are divided by to look for harm. Empty: not at all.",
    )
    slice_margin: float = Field(
        0.05, ge=0, description="A slice proven to lose more bits per byte than this keeps the champion."
    )
    min_slice_documents: int = Field(20, ge=2, description="Smaller slices are shown, not tested.")
    benchmark_margin: float = Field(
        0.02, ge=0, description="Largest loss in a benchmark's score (0 to 1) that still passes (upper bound)."
    )
    benchmark_margins: dict[str, float] = Field(
        default_factory=dict, description="The same by name of a benchmark, where it differs."
    )
    min_items: int = Field(
        50, ge=2, description="Fewer items of a benchmark answered by both models keep the champion."
    )
    guards: GuardSpec = GuardSpec()
    first_run: Literal["promote", "hold"] = Field("promote", description="What to do when there is no champion yet.")
    max_first_bits_per_byte: float = Field(
        8.0, gt=0, description="The first champion must be below this; 8 is one byte a byte."
    )
    candidate: str = Field(
        "best",
        pattern=LABEL_PATTERN,
        description="Which of tonight's models is put to the gate. best: what compress.budget chose. Else dense or a recipe's name.",
    )
    seed: int = Field(0, ge=0, description="Of the resampling.")


class EvaluationReportSpec(Frozen):
    """Nothing to choose: the report follows from the evaluation."""
