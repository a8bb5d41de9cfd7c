"""What the watch over live traffic compares, and from where on a difference is an alarm. Pydantic only, as the forms show it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from spark_jobs.manifests import Frozen

CheckName = Literal[
    "language", "prompt_bytes", "prompt_tokens", "tokens", "perplexity", "errors", "cut", "repetition", "answer_tokens"
]
CHECKS: tuple[CheckName, ...] = CheckName.__args__  # type: ignore[attr-defined]


class ReferenceSpec(Frozen):
    """The training snapshot that traffic is compared with: texts as training sees them, and the champion's own answers."""

    documents: int = Field(
        2048, ge=100, le=65536, description="Training documents drawn for language, bytes and tokens; all are counted."
    )
    heldout_documents: int = Field(256, ge=2, description="Held-out documents whose perplexity is measured.")
    max_tokens: int = Field(512, ge=8, description="Tokens of a held-out document scored, from its start.")
    answers: int = Field(64, ge=0, description="Held-out beginnings that the model goes on from, greedily.")
    beginning_tokens: int = Field(32, ge=1, description="Tokens of such a beginning.")
    answer_tokens: int = Field(64, ge=8, description="Tokens of such an answer at most.")
    seed: int = Field(0, ge=0, description="Of the draw.")


class WatchSpec(Frozen):
    """One look at the traffic of a window. A check alarms where the difference is larger than its threshold and larger than
    chance explains, over all checks of the window together."""

    reference: ReferenceSpec = ReferenceSpec()
    against: Literal["training", "traffic"] = Field(
        "training",
        description="training: the snapshot of the champion's corpus. traffic: what came in the baseline_days before; "
        "perplexity stays with the snapshot.",
    )
    baseline_days: int = Field(7, ge=1, le=90, description="Days of earlier traffic, of against: traffic.")
    checks: tuple[CheckName, ...] = Field(CHECKS, min_length=1, description="Which differences are looked for.")
    window_minutes: int = Field(60, ge=1, le=10_080, description="Traffic looked at, up to now.")
    min_requests: int = Field(200, ge=20, description="Answered requests below which a check says `too few`.")
    alpha: float = Field(
        0.001, gt=0, lt=0.2, description="Chance of any alarm in a window without a difference; Holm over its checks."
    )
    replicates: int = Field(
        9999,
        ge=999,
        le=99_999,
        description="Windows drawn without a difference, behind each p-value of a distribution.",
    )
    language_psi: float = Field(0.2, gt=0, description="Population stability index of languages. Siddiqi 2006: 0.25.")
    length_ks: float = Field(0.2, gt=0, lt=1, description="Largest difference between shares of shorter texts.")
    tokens_js: float = Field(0.15, gt=0, lt=1, description="Jensen-Shannon distance of token buckets, base 2.")
    perplexity_ratio: float = Field(1.5, gt=1, description="Perplexity of prompts over that of held-out documents.")
    error_rate: float = Field(0.02, ge=0, lt=1, description="Share of requests that may fail.")
    cut_increase: float = Field(
        0.2, ge=0, lt=1, description="Share of answers cut by a limit, above that of the reference."
    )
    repetition_increase: float = Field(
        0.2, ge=0, lt=1, description="Mean share of repeated 4-grams, above the reference."
    )
    silent_minutes: int = Field(
        10, ge=2, description="Without a line for so long, where requests should have come: nothing answers any more."
    )
    resolve_windows: int = Field(2, ge=1, description="Looks in a row without the alarm before it counts as resolved.")
    keep_days: int = Field(30, ge=1, description="Days that traffic lines and watch reports are kept.")

    @model_validator(mode="after")
    def draws_can_tell_alpha(self) -> WatchSpec:
        """The smallest p-value of R draws is 1 / (R + 1), and Holm multiplies it by the number of checks."""
        if (self.replicates + 1) * self.alpha < len(self.checks):
            least = math.ceil(len(self.checks) / self.alpha) - 1
            raise ValueError(
                f"replicates {self.replicates} cannot tell a p-value of alpha {self.alpha:g} over {len(self.checks)} checks: "
                f"wanted at least {least} replicates, or a larger alpha"
            )
        return self

    @model_validator(mode="after")
    def what_is_compared_is_kept(self) -> WatchSpec:
        needed = self.baseline_days if self.against == "traffic" else 0
        if self.keep_days < needed + self.window_minutes / 1440:
            raise ValueError(
                f"keep_days {self.keep_days} is shorter than baseline_days {self.baseline_days} and the window: raise keep_days"
            )
        return self
