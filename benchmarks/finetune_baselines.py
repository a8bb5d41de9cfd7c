"""What benchmarks/finetune.py compares with: for each kind of task a plain method, scored by the same metrics.

Each takes the rows to learn from and the rows to score, and returns the task's main metric.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer

from training.finetune.relation import directed_macro_f1
from training.metrics.answers import answer_scores
from training.metrics.bootstrap import Bootstrap
from training.metrics.classification import accuracy
from training.metrics.likelihood import perplexity
from training.metrics.multi_label import multi_label_scores
from training.metrics.ranking import pairwise_accuracy, ranking_scores
from training.metrics.regression import regression_scores
from training.metrics.score import Score
from training.metrics.spans import span_scores
from training.metrics.summarization import rouge_scores
from training.metrics.translation import chrf

Row = Mapping[str, Any]
Rows = Sequence[Row]
DRAWS = Bootstrap(seed=0)
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
WORD = re.compile(r"\w+")


def _tfidf() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)


def logistic_regression(train: Rows, test: Rows) -> Score:
    """One label: TF-IDF of words and pairs of words, logistic regression (C 10)."""
    vectors = _tfidf()
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(vectors.fit_transform([row["text"] for row in train]), [row["labels"][0] for row in train])
    found = model.predict(vectors.transform([row["text"] for row in test]))
    return accuracy([row["labels"][0] for row in test], list(found))


def logistic_regressions(train: Rows, test: Rows) -> Score:
    """Several labels: one such regression a label, at probability 0.3."""
    vectors, labels = _tfidf(), MultiLabelBinarizer()
    model = OneVsRestClassifier(LogisticRegression(C=10, max_iter=1000))
    model.fit(vectors.fit_transform([r["text"] for r in train]), labels.fit_transform([r["labels"] for r in train]))
    given = model.predict_proba(vectors.transform([r["text"] for r in test])) > 0.3
    found = [frozenset(labels.classes_[row]) for row in given]
    return multi_label_scores([frozenset(r["labels"]) for r in test], found, DRAWS)["micro_f1"]


def between_the_marks(row: Row) -> str:
    """The two arguments and what stands between them, each word marked with its place."""
    first, second = sorted((span["start"], span["end"]) for span in row["spans"])
    text = row["text"]
    parts = {"a": text[slice(*first)], "m": text[first[1] : second[0]], "b": text[slice(*second)]}
    return " ".join(f"{place}_{word}" for place, part in parts.items() for word in WORD.findall(part.lower()))


def relation_regression(train: Rows, test: Rows) -> Score:
    """TF-IDF of the arguments and the words between them, logistic regression."""
    vectors, model = _tfidf(), LogisticRegression(C=10, max_iter=1000)
    model.fit(vectors.fit_transform(map(between_the_marks, train)), [row["labels"][0] for row in train])
    found = model.predict(vectors.transform(map(between_the_marks, test)))
    return directed_macro_f1([row["labels"][0] for row in test], list(found), DRAWS)


def usual_tag(train: Rows, test: Rows) -> Score:
    """Each word's most frequent tag in training; O for a new one."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for word, tag in zip(row["tokens"], row["tags"], strict=True):
            seen[word.lower()][tag] += 1
    usual = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    found = [[usual.get(word.lower(), "O") for word in row["tokens"]] for row in test]
    return span_scores([row["tags"] for row in test], found, DRAWS)["span_f1"]


def likeliest_sentence(train: Rows, test: Rows) -> Score:
    """The sentence of the context that shares most words with the question, whole."""
    references = [[row["pair"][span["start"] : span["end"]] for span in row["spans"]] for row in test]

    def best(row: Row) -> str:
        asked = set(WORD.findall(row["text"].lower()))
        return max(SENTENCE.split(row["pair"]), key=lambda s: len(asked & set(WORD.findall(s.lower()))))

    return answer_scores(references, [best(row) for row in test], DRAWS)["token_f1"]


def copy(train: Rows, test: Rows) -> Score:
    """The source as it is."""
    return chrf([row["text"] for row in test], [[row["target"]] for row in test], DRAWS)


def lead(train: Rows, test: Rows) -> Score:
    """The first sentence."""
    first = [SENTENCE.split(row["text"].strip())[0] for row in test]
    return rouge_scores(first, [[row["target"]] for row in test], DRAWS)["rougeL"]


def ridge(train: Rows, test: Rows) -> Score:
    """TF-IDF, ridge regression."""
    vectors, model = _tfidf(), Ridge(alpha=1.0)
    model.fit(vectors.fit_transform([row["text"] for row in train]), [row["value"] for row in train])
    found = model.predict(vectors.transform([row["text"] for row in test]))
    return regression_scores([row["value"] for row in test], list(found), DRAWS)["pearson"]


def cosine(train: Rows, test: Rows) -> Score:
    """Cosine of TF-IDF vectors."""
    vectors = TfidfVectorizer(sublinear_tf=True).fit([row[side] for row in train for side in ("text", "pair")])
    ours, theirs = (vectors.transform([row[side] for row in test]) for side in ("text", "pair"))
    found = np.asarray(ours.multiply(theirs).sum(axis=1)).ravel()
    return regression_scores([row["value"] for row in test], found.tolist(), DRAWS)["spearman"]


def bm25(train: Rows, test: Rows) -> Score:
    """Okapi BM25 (k1 1.2, b 0.75) of query and candidate; statistics of all candidates."""
    candidates = sorted({row["pair"] for rows in (train, test) for row in rows})
    place = {text: number for number, text in enumerate(candidates)}
    vocabulary: dict[str, int] = {}
    counts = [Counter(WORD.findall(text.lower())) for text in candidates]
    for count in counts:
        for word in count:
            vocabulary.setdefault(word, len(vocabulary))
    rows = [number for number, count in enumerate(counts) for _ in count]
    table = sparse.csr_matrix(
        ([n for count in counts for n in count.values()], (rows, [vocabulary[w] for count in counts for w in count]))
    )
    lengths, containing = np.asarray(table.sum(axis=1)).ravel(), np.bincount(table.indices, minlength=len(vocabulary))
    idf = np.log1p((len(candidates) - containing + 0.5) / (containing + 0.5))

    def score(query: str, text: str) -> float:
        number, total = place[text], 0.0
        for word in WORD.findall(query.lower()):
            if (n := counts[number][word]) > 0:
                norm = 0.25 + 0.75 * lengths[number] / lengths.mean()
                total += idf[vocabulary[word]] * n * 2.2 / (n + 1.2 * norm)
        return total

    found = [score(row["text"], row["pair"]) for row in test]
    groups = [row["group"] for row in test]
    return ranking_scores(groups, [row["value"] for row in test], found, 10, DRAWS)["mrr"]


def longer(train: Rows, test: Rows) -> Score:
    """The longer answer is the better one."""
    sizes = [[float(len(row[side])) for row in test] for side in ("chosen", "rejected")]
    return pairwise_accuracy(sizes[0], sizes[1], DRAWS)


def unigrams(train: Rows, test: Rows, tokens_of: Any) -> Score:
    """Perplexity of the answers' tokens by their frequency among training answers, one added to each count.

    tokens_of: a row -> the ids of its answers.
    """
    counts = Counter(token for row in train for token in tokens_of(row))
    total, size = sum(counts.values()), len(counts) + 1
    nats, sizes = [], []
    for row in test:
        ids = tokens_of(row)
        nats.append(sum(-math.log((counts[token] + 1) / (total + size)) for token in ids))
        sizes.append(len(ids))
    return perplexity(nats, sizes, DRAWS)
