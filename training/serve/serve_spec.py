"""What a server allows, and how much it holds. Nothing here changes what a model would answer, only whether it is asked."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from spark_jobs.manifests import Frozen


class ServeSpec(Frozen):
    """Limits of one replica."""

    max_batch: int = Field(32, ge=1, le=1024, description="Answers written side by side, at most.")
    max_queue: int = Field(64, ge=0, le=100_000, description="Requests that may wait beyond those; more get a 503.")
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="Threads a replica computes with, at most; 0: the cores, shared by the replicas. A model that is no faster "
        "with them (timed when it is loaded) gets one.",
    )
    cache_tokens: int = Field(
        16_384,
        ge=256,
        description="Tokens of keys and values kept for all running answers together. Memory: 2 x layers x key-value heads x "
        "head size x 4 bytes each. A request longer than this is refused.",
    )
    prefill_tokens: int = Field(
        512,
        ge=16,
        description="Tokens a step may read, at most; a longer prompt is read in several, between the others.",
    )
    max_tokens: int = Field(
        1024, ge=1, description="Tokens of one answer, at most. A request that wants more is refused."
    )
    default_max_tokens: int = Field(
        16, ge=1, description="Where a completion does not say; 16 as in OpenAI's interface."
    )
    max_choices: int = Field(8, ge=1, le=128, description="n, and prompts of one request, together at most.")
    max_inputs: int = Field(64, ge=1, le=4096, description="Texts of one request for embeddings or classes, at most.")
    max_logprobs: int = Field(
        20, ge=0, le=100, description="Alternatives told a token, at most; 20 as in OpenAI's interface."
    )
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Bytes of a request's body, at most; more get a 413.")
    timeout_s: float = Field(
        120.0, gt=0, description="Seconds from a request to its last token; then it is given up, 504."
    )
    drain_s: float = Field(30.0, gt=0, description="Seconds that running answers get to end when the server stops.")
    poll_s: float = Field(1.0, gt=0, description="Seconds between two looks at which model is champion.")
    retry_s: float = Field(30.0, gt=0, description="Seconds until a champion that could not be loaded is tried again.")
    watch_every: int = Field(
        20, ge=0, description="One prompt of so many is scored under the model for the watch over traffic; 0 for none."
    )
    flush_s: float = Field(60.0, gt=0, description="Seconds between two lines of counts for the watch over traffic.")
    chat_template: str = Field(
        "",
        description="Jinja, for models whose tokenizer has none of its own. Empty: chat with such a model is refused.",
    )

    @model_validator(mode="after")
    def fits(self) -> Self:
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(f"default_max_tokens {self.default_max_tokens} is above max_tokens {self.max_tokens}")
        return self
