"""Choosing the next token of each row of a batch by what that row's request asked for.

Continuous batching of `transformers` puts requests of all kinds into one forward pass and picks by argmax; before that it hands
the logits to processors. This one draws for the rows that want to be drawn, each from a generator of its own, and leaves only
the drawn token finite. So a request with a seed answers the same whoever its neighbours are, and a greedy row costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.logits_process import LogitsProcessor

Alternatives = tuple[tuple[int, float], ...]  # token and its log-probability, likeliest first


@dataclass(frozen=True)
class TokenScore:
    """Log-probability, in nats, of a token under the model itself: before temperature and top_p."""

    token: int
    logprob: float
    top: Alternatives = ()


@dataclass(eq=False)
class Sampling:
    """How one answer's tokens are chosen. num_top: alternatives kept a token; None: no scores are kept at all."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    num_top: int | None = None
    scores: list[TokenScore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator()
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed % 2**63)

    def __deepcopy__(self, _memo: Any) -> Sampling:
        return self  # an answer that is taken out of the cache and read again goes on with its own draws

    @property
    def plain(self) -> bool:
        return self.temperature == 0.0 and self.num_top is None

    def choose(self, logits_V: Tensor) -> None:
        """Note the choice's score; where it was drawn, leave no other token finite. logits_V: fp32, changed in place."""
        choice = int(logits_V.argmax()) if self.temperature == 0.0 else self._draw(logits_V)
        if self.num_top is not None:
            self.scores.append(score_of(logits_V.log_softmax(-1), choice, self.num_top))
        if self.temperature != 0.0:
            logits_V.fill_(-torch.inf)[choice] = 0.0

    def _draw(self, logits_V: Tensor) -> int:
        probs_V = (logits_V.double() / self.temperature).softmax(-1)
        if self.top_p < 1.0:
            sorted_V, order_V = probs_V.sort(descending=True, stable=True)
            outside_V = sorted_V.cumsum(-1) - sorted_V >= self.top_p
            probs_V[order_V[outside_V]] = 0.0
        return int(torch.multinomial(probs_V.cpu(), 1, generator=self.generator))


def score_of(logprobs_V: Tensor, token: int, num_top: int) -> TokenScore:
    top = logprobs_V.topk(min(num_top, len(logprobs_V))) if num_top else None
    alternatives = () if top is None else tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenScore(token, float(logprobs_V[token]), alternatives)


class PerRequest(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Row i of the logits belongs to the i-th request that gets a token in this step."""

    supported_kwargs: dict[str, type] = {"sampling": Sampling}  # noqa: RUF012 named so by the base class
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.rows: list[Sampling] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        self.rows = [request.state.logit_processor_kwargs["sampling"] for request in requests_with_new_token]
        return torch.zeros(len(self.rows), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        for row, sampling in enumerate(self.rows):
            if not sampling.plain:
                sampling.choose(scores[row])
        return scores


class OneRequest(LogitsProcessor):  # type: ignore[misc]
    """The same for `generate`, which has one request at a time. scores: (1, V)."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().clone()
        if not self.sampling.plain:
            self.sampling.choose(scores[0])
        return scores
