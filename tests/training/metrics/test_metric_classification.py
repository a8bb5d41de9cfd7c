from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef, precision_recall_fscore_support

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, drawn, paired_difference
from training.metrics.classification import (
    accuracy,
    classification_scores,
    confusion,
    count_labels,
    matthews,
    scores_by_class,
)
from training.metrics.f1 import f1, macro_f1
from training.metrics.logits import best_labels, labels_above, num_ties, softmax

ONE = Bootstrap(replicates=1)
LABELS = ["bee", "cat", "dog", "eel"]
PAIRS = st.lists(st.tuples(st.sampled_from(LABELS[:3]), st.sampled_from(LABELS)), min_size=1, max_size=40)


def test_macro_f1_is_the_mean_over_classes_of_gold_or_prediction() -> None:
    """F1 of the three: 1, 0, 0.8. Taken class by class against the rest and averaged again it would be 0.721."""
    scores = classification_scores(list("abcc"), list("accc"), ONE)
    assert scores["macro_f1"].value == pytest.approx(0.6)
    assert scores["micro_f1"].value == scores["accuracy"].value == 0.75
    assert scores["weighted_f1"].value == pytest.approx(0.65)
    assert "classes:gold-or-predicted" in scores["macro_f1"].signature


def test_class_that_never_occurs_does_not_move_the_macro_f1() -> None:
    """With a fourth class of the label set counted as 0 it would be 0.45, as 1 it would be 0.70."""
    gold, predicted = list("abcc"), best_labels(np.eye(4)[[0, 2, 2, 2]], list("abcd"))
    counts = count_labels(gold, predicted, ONE)
    assert f1(counts, "macro", "macro_f1").value == pytest.approx(0.6)
    assert counts.support == {"a": 1, "b": 1, "c": 2}


def test_class_that_is_only_predicted_lowers_the_macro_f1() -> None:
    assert classification_scores(["a", "a"], ["a", "b"], ONE)["macro_f1"].value == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("row", [
    [math.nan] * 4, [-3.0, math.nan, -1.0, -4.0], [0.0, math.inf, 0.0, 0.0], [0.0, -math.inf, 0.0, 0.0],
])  # fmt: skip
@pytest.mark.parametrize("wanted", LABELS)
def test_logits_that_are_not_finite_are_never_right(row: list[float], wanted: str) -> None:
    """`argmax` of four NaN is 0: a broken model would be right wherever the first label is."""
    predicted = best_labels(np.array([row, [0.0, 0.0, 0.0, 1.0]]), LABELS)
    assert predicted == [None, "eel"]
    scores = classification_scores([wanted, "eel"], predicted, ONE)
    assert {name: score.n_invalid for name, score in scores.items()} == dict.fromkeys(scores, 1)
    assert scores["accuracy"].value == 0.5
    assert scores["accuracy"].n == 2


def test_model_that_is_never_finite_has_the_worst_scores() -> None:
    scores = classification_scores(["a", "b"], [None, None], ONE)
    assert {name: score.value for name, score in scores.items()} == dict.fromkeys(scores, 0.0)


def test_first_of_equal_logits_is_the_label_and_the_tie_is_counted() -> None:
    logits = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [0.0, 1.0, 2.0], [np.nan, 1.0, 1.0]])
    assert best_labels(logits, ["a", "b", "c"]) == ["a", "b", "c", None]
    assert num_ties(logits) == 2
    assert num_ties(np.empty((0, 3))) == 0


def test_labels_above_the_threshold() -> None:
    logits = np.array([[0.1, -0.1, 0.0], [3.0, 3.0, 3.0], [-1.0, -1.0, -1.0], [9.0, np.inf, 0.0]])
    assert labels_above(logits, ["a", "b", "c"]) == [{"a"}, {"a", "b", "c"}, set(), None]
    assert labels_above(logits, ["a", "b", "c"], threshold=-0.5)[0] == {"a", "b", "c"}


def test_logits_of_another_number_of_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(2, 3\) for 2 labels"):
        best_labels(np.zeros((2, 3)), ["a", "b"])


def test_softmax_of_large_and_of_broken_logits() -> None:
    p = softmax(np.array([[1000.0, 1000.0], [0.0, math.log(3)], [np.nan, 0.0]]))
    assert p[:2] == pytest.approx(np.array([[0.5, 0.5], [0.25, 0.75]]))
    assert np.isnan(p[2]).all()


@settings(deadline=None, max_examples=50)
@given(pairs=PAIRS)
def test_scores_agree_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    gold, predicted = (list(column) for column in zip(*pairs, strict=True))
    scores = classification_scores(gold, predicted, ONE)
    for average in ("macro", "micro", "weighted"):
        expected = f1_score(gold, predicted, average=average, zero_division=0.0)
        assert scores[f"{average}_f1"].value == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a single label
        assert scores["matthews"].value == pytest.approx(matthews_corrcoef(gold, predicted))
        table = confusion(gold, predicted)
        assert table.labels == tuple(sorted({*gold, *predicted}))
        assert (table.counts == confusion_matrix(gold, predicted, labels=list(table.labels))).all()
    by_class = scores_by_class(gold, predicted, ONE)
    expected = precision_recall_fscore_support(gold, predicted, labels=list(by_class), zero_division=0.0)
    ours = [(s.precision.value, s.recall.value, s.f1.value, s.support) for s in by_class.values()]
    assert np.array(ours) == pytest.approx(np.array(expected).T)
    assert sum(s.num_predicted for s in by_class.values()) == len(predicted)


@settings(deadline=None, max_examples=50)
@given(pairs=PAIRS, data=st.data())
def test_scores_do_not_depend_on_the_order_and_are_within_bounds(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    moved = data.draw(st.permutations(pairs))
    before, after = (classification_scores(*map(list, zip(*rows, strict=True)), ONE) for rows in (pairs, moved))
    for name, score in before.items():
        assert score.value == pytest.approx(after[name].value, abs=1e-12)
        assert (-1 if name == "matthews" else 0) <= score.value <= 1
        assert score.n == len(pairs)


@settings(deadline=None, max_examples=50)
@given(gold=st.lists(st.sampled_from(LABELS), min_size=1, max_size=30))
def test_perfect_prediction_has_the_best_scores(gold: list[str]) -> None:
    scores = classification_scores(gold, gold, ONE)
    for name in ("accuracy", "macro_f1", "micro_f1", "weighted_f1"):
        assert scores[name].value == 1.0
    assert scores["matthews"].value == pytest.approx(1.0 if len(set(gold)) > 1 else 0.0)


def test_invalid_answers_are_a_class_of_their_own_for_matthews_and_confusion() -> None:
    gold, predicted = ["a", "a", "b", "b"], ["a", None, "b", None]
    expected = matthews_corrcoef(gold, ["a", "?", "b", "?"])
    assert matthews(count_labels(gold, predicted, ONE)).value == pytest.approx(expected)
    table = confusion(gold, predicted)
    assert table.counts.tolist() == [[1, 0], [0, 1]]
    assert table.invalid.tolist() == [1, 1]


def test_interval_of_f1_lies_around_it_and_shrinks_with_items() -> None:
    widths = []
    for repeats in (10, 40):
        score = classification_scores(list("aabbc") * repeats, list("aabbb") * repeats, Bootstrap())["macro_f1"]
        assert score.low < score.value < score.high
        widths.append(score.high - score.low)
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.25)


def test_interval_of_macro_f1_is_that_of_the_drawn_texts() -> None:
    """A rare class is missing in some draws, and is then not counted there either."""
    gold, predicted = list("aaaaabbbbc"), list("aaaabbbbac")
    bootstrap = Bootstrap(replicates=60, seed=9)
    values = []
    for r in range(60):
        items = np.repeat(np.arange(10), drawn(10, 9, r))
        values.append(f1_score([gold[i] for i in items], [predicted[i] for i in items], average="macro"))
    score = f1(count_labels(gold, predicted, bootstrap), "macro", "macro_f1")
    assert (score.low, score.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_two_models_are_compared_on_the_same_draws_whatever_classes_they_name() -> None:
    gold = list("aabbcc") * 20
    bootstrap = Bootstrap(replicates=300)
    ours = count_labels(gold, list("aabbcd") * 20, bootstrap)
    theirs = count_labels(gold, list("ababcc") * 20, bootstrap)
    difference = paired_difference(ours.resampled, theirs.resampled, macro_f1)
    expected = f1(ours, "macro", "macro_f1").value - f1(theirs, "macro", "macro_f1").value
    assert difference.value == pytest.approx(expected)
    assert difference.low < expected < difference.high


def test_no_texts_have_no_scores() -> None:
    for score in classification_scores([], [], ONE).values():
        assert score.n == 0
        assert math.isnan(score.value)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match="2 gold, 1 predicted"):
        accuracy(["a", "b"], ["a"])
