"""Rows of a benchmark -> its metrics, each with number, invalid items, interval and signature; of any part of the rows too.

An item without a finite answer is wrong where a metric has a wrong, and leaves the others undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from training.benchmarks.asking import Row, choice_points
from training.benchmarks.task_file import LESS_IS_BETTER, TaskFile
from training.metrics.answers import answer_scores
from training.metrics.bootstrap import Bootstrap, Metric, resample_sums
from training.metrics.calibration import brier, calibration_error
from training.metrics.choices import choice_scores
from training.metrics.classification import classification_scores
from training.metrics.likelihood import perplexity
from training.metrics.proportion import proportion
from training.metrics.ratio import ratio
from training.metrics.score import Score
from training.metrics.summarization import rouge_scores
from training.metrics.translation import bleu, chrf

Scores = dict[str, Score]
LN2 = math.log(2)


def scores_of(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap, only: Sequence[str] = ()) -> Scores:
    """The task's metrics in its order, the main one first; `only`: some of them."""
    wanted = tuple(only) or task.chosen_metrics
    found: Scores = {}
    for metrics, compute in FAMILIES[task.kind]:
        if set(metrics) & set(wanted):
            found |= compute(task, rows, bootstrap)
    signed = {name: found[name] for name in wanted}
    told = _definition(task)
    return {name: s.model_copy(update={"signature": f"{told}|{s.signature}"}) for name, s in signed.items()}


def value_of(task: TaskFile, row: Row) -> float:
    """The item's own part of the main metric, turned so that more is better; NaN where it is not finite.

    A metric of a corpus (BLEU, F1 over classes) has no parts: of a class it is whether it is right, of a text its score.
    """
    main = task.chosen_metrics[0]
    if row.right is not None and main not in LESS_IS_BETTER:
        return float(row.right)
    if not row.finite:
        return math.nan
    if main in ("brier", "ece"):
        p = choice_probabilities(row)
        return -float(sum((x - (i == row.item.gold)) ** 2 for i, x in enumerate(p)))
    value = scores_of(task, [row], Bootstrap(replicates=1), (main,))[main].value
    return -value if main in LESS_IS_BETTER else value


def _definition(task: TaskFile) -> str:
    return f"kind:{task.kind}|version:{task.version}"


def choice_probabilities(row: Row) -> np.ndarray:
    """Softmax of the choices' likelihoods: what the model would give each, had it to take one. NaN if one is not finite."""
    nats = np.array(row.log_likelihoods)
    if not np.isfinite(nats).all():
        return np.full(len(nats), np.nan)
    weights = np.exp(nats - nats.max())
    return np.asarray(weights / weights.sum())


def _accuracies(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    return choice_scores([r.log_likelihoods for r in rows], [r.item.choices for r in rows], [r.item.gold for r in rows])


def _pmi(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    """log p(choice | question) - log p(choice | unconditional): what the question adds."""
    right = [
        row.finite
        and int(np.argmax(choice_points("accuracy_pmi", row.log_likelihoods, row.unconditional, row.item.choices)))
        == row.item.gold
        for row in rows
    ]
    told = f"ties:first|unconditional:{task.unconditional}"
    return {"accuracy_pmi": proportion("accuracy_pmi", right, sum(not row.finite for row in rows), told)}


def _choice_calibration(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    width = max((len(row.item.choices) for row in rows), default=1)
    p_NC = np.zeros((len(rows), width))
    for p_C, row in zip(p_NC, rows, strict=True):
        p_C[: len(row.item.choices)] = choice_probabilities(row)
        if not row.finite:
            p_C[:] = np.nan
    gold = [row.item.gold for row in rows]
    taken = p_NC.argmax(axis=1) if len(rows) else np.empty(0, int)
    confidence = p_NC.max(axis=1, initial=0.0) if len(rows) else np.empty(0)
    confidence[np.isnan(p_NC).any(axis=1)] = np.nan
    right = [bool(i == wanted) for i, wanted in zip(taken, gold, strict=True)]
    return {"brier": brier(p_NC, gold, bootstrap), "ece": calibration_error(list(confidence), right, bootstrap)}


def _classes(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    return classification_scores([r.item.choices[r.item.gold] for r in rows], [r.prediction for r in rows], bootstrap)


def _greedy(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    """Right where every token of the target is the likeliest at its place."""
    invalid = sum(not row.finite for row in rows)
    return {"accuracy": proportion("accuracy", [bool(row.right) for row in rows], invalid, "right:greedy")}


def _likelihoods(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    """Of what was scored: nats over tokens, items, bytes, words; sums are resampled, never means of ratios."""
    tokens = [row.num_tokens for row in rows]
    nats = np.array([row.nats for row in rows], np.float64)
    invalid = int((~np.isfinite(nats)).sum())
    nats = np.full_like(nats, np.nan) if invalid else nats
    texts = [row.item.target for row in rows]
    bytes_N = [len(text.encode()) for text in texts]
    words_N = [len(text.split()) for text in texts]
    sums = resample_sums(
        np.stack([nats, np.array(bytes_N, float), np.array(words_N, float), np.ones(len(rows))], axis=-1)
        if rows
        else np.empty((0, 4)),
        bootstrap,
        invalid,
    )

    def a(column: int, change: Callable[[np.ndarray], np.ndarray]) -> Metric:
        return lambda s: change(ratio(s[..., 0], s[..., column]))

    return {
        "perplexity": perplexity(list(nats), tokens, bootstrap),
        "bits_per_byte": sums.score("bits_per_byte", a(1, lambda x: x / LN2), "weight:byte"),
        "byte_perplexity": sums.score("byte_perplexity", a(1, np.exp), "weight:byte"),
        "word_perplexity": sums.score("word_perplexity", a(2, np.exp), "weight:word"),
        "item_perplexity": sums.score("item_perplexity", a(3, np.exp), "weight:item"),
    }


def _answers(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    return answer_scores([r.item.answers for r in rows], [r.prediction for r in rows], bootstrap, task.normalization)


def _bleu(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    return {"bleu": bleu([r.prediction for r in rows], [r.item.answers for r in rows], task.language, bootstrap)}


def _chrf(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    return {"chrf": chrf([r.prediction for r in rows], [r.item.answers for r in rows], bootstrap)}


def _rouge(task: TaskFile, rows: Sequence[Row], bootstrap: Bootstrap) -> Scores:
    return rouge_scores([r.prediction for r in rows], [r.item.answers for r in rows], bootstrap)


Compute = Callable[[TaskFile, Sequence[Row], Bootstrap], Scores]
_TEXTS = (("perplexity", "item_perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity"), _likelihoods)
_CALIBRATED = (("brier", "ece"), _choice_calibration)
FAMILIES: dict[str, tuple[tuple[tuple[str, ...], Compute], ...]] = {  # metrics that are computed together, by kind
    "multiple_choice": (
        (("accuracy", "accuracy_norm", "accuracy_bytes"), _accuracies), (("accuracy_pmi",), _pmi), _CALIBRATED,
    ),
    "classification_by_likelihood": (
        (("accuracy", "macro_f1", "micro_f1", "weighted_f1", "matthews"), _classes), _CALIBRATED,
    ),
    "continuation": ((("accuracy",), _greedy), _TEXTS),
    "generation": (
        (("exact_match", "token_f1"), _answers), (("bleu",), _bleu), (("chrf",), _chrf),
        (("rouge1", "rouge2", "rougeL"), _rouge),
    ),
    "rolling_text": (_TEXTS,),
}  # fmt: skip
