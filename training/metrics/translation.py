"""BLEU and chrF of texts against their references, by sacrebleu. Items are texts (segments).

sacrebleu wants references by stream: the first reference of every text, then the second. Given by text they are cut off
or scored against the wrong text without a word. Here they are given by text, as rows have them, checked, and turned.

Both are functions of counts summed over texts, so an empty hypothesis costs its reference's length; it is never dropped.
Without any text in the references they are undefined (NaN).
Scores are from 0 to 100 as printed elsewhere. BLEU has no effective order: a corpus without a 4-gram scores 0.

Shapes: N texts; statistics of BLEU (..., 10): length, reference length, 4 matches, 4 n-grams; of chrF (..., 3 O).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, Resampled, resample_sums
from training.metrics.pairing import check_paired, check_texts
from training.metrics.score import Score

# Languages whose words are not set apart by spaces: words of zh by sacrebleu's own rule, characters else. Its tokenizers
# for ja and ko want MeCab and a dictionary. Korean has spaces, but between groups of words and endings.
TOKENIZERS = {"zh": "zh", "yue": "zh"} | dict.fromkeys(("ja", "ko", "th", "lo", "km", "my"), "char")
ORDER = 4
BETA = 2


def bleu(
    hypotheses: Sequence[str | None], references: Sequence[Sequence[str]], language: str, bootstrap: Bootstrap
) -> Score:
    """Corpus BLEU (Papineni et al. 2002), smoothed as sacrebleu does by default.

    hypotheses: None where the model wrote nothing finite: scored as empty, counted invalid. language: BCP 47, of the
    references; it chooses the tokenizer. Raises: DataError if lengths differ or a text has no reference.
    """
    scorer = bleu_scorer(language)
    sums = segment_sums(scorer, hypotheses, references, bootstrap)
    return sums.score("bleu", bleu_of_sums, _definition(scorer, hypotheses))


def chrf(
    hypotheses: Sequence[str | None], references: Sequence[Sequence[str]], bootstrap: Bootstrap, word_order: int = 0
) -> Score:
    """chrF (Popović 2015): F2 of character n-grams up to 6; chrF++ with word_order 2. Arguments as for `bleu`."""
    scorer = CHRF(word_order=word_order)
    sums = segment_sums(scorer, hypotheses, references, bootstrap)
    return sums.score("chrf" + "+" * word_order, chrf_of_sums, _definition(scorer, hypotheses))


def bleu_scorer(language: str) -> BLEU:
    """BLEU with the tokenizer of a language (BCP 47)."""
    primary = language.replace("_", "-").lower().split("-")[0]
    return BLEU(tokenize=TOKENIZERS.get(primary, "13a"), force=True)


def segment_sums(
    scorer: BLEU | CHRF,
    hypotheses: Sequence[str | None],
    references: Sequence[Sequence[str]],
    bootstrap: Bootstrap,
) -> Resampled:
    """Sums of the counts of each text, for `bleu_of_sums` or `chrf_of_sums`; for a comparison of two models too."""
    streams = reference_streams(hypotheses, references)
    texts = [text or "" for text in hypotheses]
    # What the significance tests of sacrebleu sum. Without texts it still wants a stream, an empty one.
    counts = scorer._extract_corpus_statistics(texts, cast(Sequence[Sequence[str]], streams or [[]]))
    width = 2 + 2 * ORDER if isinstance(scorer, BLEU) else 3 * scorer.order
    stats_NS = np.array(counts, np.float64).reshape(len(texts), width)
    return resample_sums(stats_NS, bootstrap, sum(text is None for text in hypotheses))


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """Geometric mean of precisions times brevity penalty; the k-th order without a match counts as 1 / 2^k matches."""
    length, wanted = sums[..., 0], sums[..., 1]
    matches, total = sums[..., 2 : 2 + ORDER], sums[..., 2 + ORDER :]
    smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum(matches == 0, axis=-1))
    scored = (matches > 0).any(-1) & (total > 0).all(-1)
    logs = np.log(smoothed / np.where(total > 0, total, 1.0)).mean(-1)
    penalty = np.minimum(0.0, 1 - wanted / np.where(length > 0, length, 1.0))
    return np.where(wanted > 0, np.where(scored, 100 * np.exp(logs + penalty), 0.0), np.nan)


def chrf_of_sums(sums: np.ndarray) -> np.ndarray:
    """F of the mean precision and the mean recall over orders that both sides have."""
    found, wanted, matched = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
    both = (found > 0) & (wanted > 0)
    orders = np.maximum(both.sum(-1), 1)
    precision = np.where(both, matched / np.where(both, found, 1), 0).sum(-1) / orders
    recall = np.where(both, matched / np.where(both, wanted, 1), 0).sum(-1) / orders
    denominator = BETA**2 * precision + recall
    f = (1 + BETA**2) * precision * recall / np.where(denominator > 0, denominator, 1.0)
    return np.where(wanted.sum(-1) > 0, 100 * f, np.nan)


def reference_streams(hypotheses: Sequence[str | None], references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References by text -> by stream, None where a text has fewer than others.

    Raises: DataError if there is not one list of references for each text, or an empty one.
    """
    check_paired(hypotheses=hypotheses, references=references)
    check_texts(references)
    for item, texts in enumerate(references):
        if not texts:
            raise DataError(f"text {item} has no reference: nothing to score it against, leave it out of the set")
    width = max(map(len, references), default=0)
    return [[texts[i] if i < len(texts) else None for texts in references] for i in range(width)]


def _definition(scorer: BLEU | CHRF, hypotheses: Sequence[str | None]) -> str:
    empty = sum(not (text or "").strip() for text in hypotheses)
    return f"{scorer.get_signature().format()}|empty:{empty}"
