"""Our scorer as a model of lm-evaluation-harness: its tasks, prompts and metrics, our encoding, likelihoods and cache.

What differs from the harness's own model of transformers, and why, is in docs/evaluation.md; `python -m
benchmarks.harness_parity` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from spark_jobs.errors import RequestError
from training.benchmarks.cache import AnswerCache
from training.benchmarks.requests import Answer, Continuation, Generation, Likelihood, Request, Rolling, Written
from training.benchmarks.scorer import Scorer

MAX_NEW_TOKENS = 256  # where a task names no limit, as the harness has it
NOT_FINITE = "\x00not finite\x00"  # a text that no answer equals


class ScoredModel(LM):  # type: ignore[misc]
    """One process, one rank. Answers without a finite value are given as the worst there is, and noted by the harness's own
    records of what was answered: the job counts them."""

    def __init__(self, scorer: Scorer, cache: AnswerCache) -> None:
        super().__init__()
        self.scorer, self.cache = scorer, cache

    @property
    def tokenizer_name(self) -> str:
        return self.cache.key.tokenizer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        answers = self._answers([Continuation(*instance.args) for instance in requests])
        return [(_value(a), a.greedy) for a in answers if isinstance(a, Likelihood)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        answers = self._answers([Rolling(instance.args[0]) for instance in requests])
        return [_value(a) for a in answers if isinstance(a, Likelihood)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        answers = self._answers([_generation(*instance.args) for instance in requests])
        return [NOT_FINITE if a.text is None else a.text for a in answers if isinstance(a, Written)]

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        return self.cache.answer(requests, self.scorer.answer)


def _generation(context: str, told: dict[str, Any]) -> Generation:
    """Raises: RequestError for anything but greedy writing: a drawn text has no one right score."""
    if told.get("do_sample") or told.get("temperature") or told.get("num_beams", 1) != 1:
        raise RequestError(f"harness: generation_kwargs {told}: answers are written greedily; set do_sample to false")
    until = told.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    most = next(
        (told[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in told), MAX_NEW_TOKENS
    )
    return Generation(context, stops, int(most))


def _value(answer: Likelihood) -> float:
    return answer.log_likelihood if answer.finite else -math.inf
