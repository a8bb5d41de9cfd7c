from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from training.metrics.bootstrap import Bootstrap
from training.metrics.multi_label import multi_label_scores

ONE = Bootstrap(replicates=1)
LABELS = ["art", "law", "sea"]
SETS = st.frozensets(st.sampled_from(LABELS))


def test_multi_label_scores_of_three_texts() -> None:
    """Right 2, gold 4, predicted 3: micro F1 4/7. By label: art 1, law 0 (missed), sea 2/3 of one right, two gold."""
    gold = [{"art", "law"}, {"sea"}, {"sea"}]
    predicted = [{"art"}, {"sea"}, {"law"}]
    scores = multi_label_scores(gold, predicted, ONE)
    assert scores["micro_f1"].value == pytest.approx(4 / 7)
    assert scores["macro_f1"].value == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert scores["weighted_f1"].value == pytest.approx((1 + 0 + 2 * 2 / 3) / 4)
    assert scores["precision"].value == pytest.approx(2 / 3)
    assert scores["recall"].value == pytest.approx(2 / 4)
    assert scores["subset_accuracy"].value == pytest.approx(1 / 3)
    assert scores["cardinality"].value == pytest.approx(1.0)
    assert scores["gold_cardinality"].value == pytest.approx(4 / 3)


def test_text_without_labels_is_right_if_none_is_given() -> None:
    scores = multi_label_scores([set(), {"art"}], [set(), {"art"}], ONE)
    assert scores["subset_accuracy"].value == 1.0
    assert scores["micro_f1"].value == 1.0


def test_f1_without_any_label_is_undefined() -> None:
    scores = multi_label_scores([set(), set()], [set(), set()], ONE)
    assert scores["subset_accuracy"].value == 1.0
    assert all(math.isnan(scores[name].value) for name in ("micro_f1", "macro_f1", "weighted_f1", "precision"))


def test_no_predicted_label_has_precision_zero() -> None:
    scores = multi_label_scores([{"art"}], [set()], ONE)
    assert (scores["precision"].value, scores["recall"].value, scores["micro_f1"].value) == (0.0, 0.0, 0.0)


def test_no_gold_label_has_recall_zero() -> None:
    assert multi_label_scores([set()], [{"art"}], ONE)["recall"].value == 0.0


def test_invalid_text_is_a_miss_even_where_there_is_no_label() -> None:
    scores = multi_label_scores([set(), {"art"}, {"art"}], [None, None, {"art"}], ONE)
    assert scores["subset_accuracy"].value == pytest.approx(1 / 3)
    assert scores["subset_accuracy"].n_invalid == scores["micro_f1"].n_invalid == 2
    assert scores["recall"].value == 0.5


@settings(deadline=None, max_examples=25)
@given(pairs=st.lists(st.tuples(SETS, SETS), min_size=1, max_size=25))
def test_scores_agree_with_scikit_learn(pairs: list[tuple[frozenset[str], frozenset[str]]]) -> None:
    gold, predicted = ([p[i] for p in pairs] for i in (0, 1))
    present = sorted(set().union(*gold, *predicted))
    scores = multi_label_scores(gold, predicted, ONE)
    assume(len(present) > 1)  # of one column scikit-learn makes a question of yes and no
    ours, theirs = (np.array([[x in s for x in present] for s in sets], int) for sets in (gold, predicted))
    for average in ("micro", "macro", "weighted"):
        value = scores[f"{average}_f1"].value
        p, r, f, _ = precision_recall_fscore_support(ours, theirs, average=average, zero_division=0.0)
        if average == "weighted" and not ours.any():
            assert math.isnan(value)
        else:
            assert value == pytest.approx(f)
        if average == "micro":
            assert (scores["precision"].value, scores["recall"].value) == pytest.approx((p, r))
    assert scores["subset_accuracy"].value == pytest.approx(accuracy_score(ours, theirs))


@settings(deadline=None, max_examples=50)
@given(pairs=st.lists(st.tuples(SETS, SETS), min_size=1, max_size=25), data=st.data())
def test_scores_do_not_depend_on_the_order(
    pairs: list[tuple[frozenset[str], frozenset[str]]], data: st.DataObject
) -> None:
    moved = data.draw(st.permutations(pairs))
    before, after = (multi_label_scores([g for g, _ in rows], [p for _, p in rows], ONE) for rows in (pairs, moved))
    for name, score in before.items():
        assert score.value == pytest.approx(after[name].value, nan_ok=True)
