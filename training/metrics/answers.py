"""Answers to questions: exact match and token F1 of SQuAD, the best over several references. Items are questions.

Two ways to compare, named in the signature:

- `squad`: `tokens.squad_tokens`, that of the SQuAD scripts, for English;
- `unicode`: `tokens.unicode_tokens`, for any language: two Chinese answers can overlap.

A question without references is unanswerable: "" is right, anything else wrong. "" for an answerable one is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from training.metrics.bootstrap import Bootstrap, mean_scores
from training.metrics.pairing import check_paired, check_texts
from training.metrics.proportion import proportion
from training.metrics.score import Score
from training.metrics.tokens import squad_tokens, unicode_tokens

Normalization = Literal["squad", "unicode"]

TOKENS: dict[Normalization, Callable[[str], list[str]]] = {"squad": squad_tokens, "unicode": unicode_tokens}


def answer_scores(
    references: Sequence[Sequence[str]],
    predicted: Sequence[str | None],
    bootstrap: Bootstrap,
    normalization: Normalization = "squad",
) -> dict[str, Score]:
    """exact_match and token_f1, shares from 0 to 1 (SQuAD's scripts print percent).

    Where there are unanswerable questions also `exact_match/answerable`, `token_f1/answerable` and
    `exact_match/unanswerable`. predicted: None where the model gave no finite answer: wrong, counted as invalid.
    """
    check_paired(references=references, predicted=predicted)
    check_texts(references)
    judged = [judge(refs, answer, normalization) for refs, answer in zip(references, predicted, strict=True)]
    answerable = [bool(_given(refs, normalization)) for refs in references]
    scores = _scores("", judged, predicted, bootstrap, normalization)
    if not all(answerable):
        for name, keep in (("/answerable", True), ("/unanswerable", False)):
            rows = [i for i, given in enumerate(answerable) if given is keep]
            part = [judged[i] for i in rows]
            scores |= _scores(name, part, [predicted[i] for i in rows], bootstrap, normalization)
        scores.pop("token_f1/unanswerable")  # is exact_match/unanswerable
    return scores


def judge(references: Sequence[str], answer: str | None, normalization: Normalization) -> tuple[bool, float]:
    """(exact match, token F1) of one answer: each the best over its references."""
    if answer is None:
        return False, 0.0
    tokens = TOKENS[normalization](answer)
    wanted = _given(references, normalization) or [[]]
    return any(tokens == ref for ref in wanted), max(token_f1(ref, tokens) for ref in wanted)


def token_f1(reference: Sequence[str], answer: Sequence[str]) -> float:
    """F1 of the two bags of tokens; where one is empty 1 if both are, else 0."""
    if not reference or not answer:
        return float(not reference and not answer)
    return 2 * (Counter(reference) & Counter(answer)).total() / (len(reference) + len(answer))


def _given(references: Sequence[str], normalization: Normalization) -> list[list[str]]:
    """Tokens of each reference that has any, as in SQuAD: one of punctuation only is no answer."""
    return [tokens for ref in references if (tokens := TOKENS[normalization](ref))]


def _scores(
    suffix: str, judged: Sequence[tuple[bool, float]], predicted: Sequence[str | None], bootstrap: Bootstrap,
    normalization: Normalization,
) -> dict[str, Score]:  # fmt: skip
    definition = f"normalization:{normalization}|references:best"
    num_invalid = sum(answer is None for answer in predicted)
    values = {f"token_f1{suffix}": np.array([f for _, f in judged], np.float64)}
    exact = proportion(f"exact_match{suffix}", [right for right, _ in judged], num_invalid, definition)
    return {exact.name: exact, **mean_scores(values, bootstrap, num_invalid, definition)}
