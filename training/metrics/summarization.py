"""ROUGE-1, ROUGE-2, ROUGE-L of texts against their references, by rouge-score. Items are texts.

rouge-score's own tokenizer keeps a-z and 0-9: a Chinese text scores 0 against itself. It is given `tokens.words` here,
which has the same tokens for ASCII. F1 of each text, the best over its references, mean over texts, from 0 to 1. ROUGE-L
takes a text as one sequence; it is not ROUGE-Lsum, which splits at newlines.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from training.metrics.bootstrap import Bootstrap, mean_scores
from training.metrics.score import Score
from training.metrics.tokens import words
from training.metrics.translation import reference_streams

KINDS = ("rouge1", "rouge2", "rougeL")


class _Words(Tokenizer):  # type: ignore[misc]
    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge_scores(
    hypotheses: Sequence[str | None], references: Sequence[Sequence[str]], bootstrap: Bootstrap
) -> dict[str, Score]:
    """rouge1, rouge2, rougeL. hypotheses: None where the model wrote nothing finite: 0, counted invalid.

    Raises: DataError if lengths differ or a text has no reference.
    """
    reference_streams(hypotheses, references)
    scorer = RougeScorer(list(KINDS), tokenizer=_Words())
    judged = [scorer.score_multi(refs, text or "") for refs, text in zip(references, hypotheses, strict=True)]
    values = {kind: np.array([scores[kind].fmeasure for scores in judged], np.float64) for kind in KINDS}
    empty = sum(not (text or "").strip() for text in hypotheses)
    definition = f"measure:f1|tok:words-nfc|stemmer:no|references:best|version:{version('rouge-score')}|empty:{empty}"
    return mean_scores(values, bootstrap, sum(text is None for text in hypotheses), definition)
