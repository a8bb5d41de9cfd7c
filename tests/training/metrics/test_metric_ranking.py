from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from spark_jobs.errors import DataError
from training.metrics.bootstrap import Bootstrap, drawn
from training.metrics.ranking import auc, ndcg, pairwise_accuracy, ranking_scores, recall, reciprocal_rank

ONE = Bootstrap(replicates=1)
CANDIDATES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=6).filter(
    lambda rows: any(relevance for relevance, _ in rows)
)


def test_scores_of_two_queries() -> None:
    """First query: relevant at ranks 2 and 3; second: at 1. At k = 2 gains are 1/log2(3) of 1 + 1/log2(3), and all."""
    groups = ["q1", "q1", "q1", "q2", "q2"]
    relevance = [0, 1, 1, 0, 1]
    scores = ranking_scores(groups, relevance, [0.9, 0.8, 0.1, 0.2, 0.7], 2, ONE)
    discount = 1 / math.log2(3)
    assert scores["mrr"].value == pytest.approx((1 / 2 + 1) / 2)
    assert scores["ndcg@2"].value == pytest.approx((discount / (1 + discount) + 1) / 2)
    assert scores["recall@2"].value == pytest.approx((1 / 2 + 1) / 2)
    assert scores["mrr"].n == 2


def test_groups_may_be_interleaved() -> None:
    together = ranking_scores(["a", "a", "b", "b"], [0, 1, 1, 0], [3, 2, 1, 0], 1, ONE)
    apart = ranking_scores(["a", "b", "a", "b"], [0, 1, 1, 0], [3, 1, 2, 0], 1, ONE)
    assert {n: s.value for n, s in together.items()} == {n: s.value for n, s in apart.items()}


@settings(deadline=None, max_examples=50)
@given(rows=CANDIDATES, k=st.integers(1, 6))
def test_equal_scores_give_the_mean_over_all_their_orders(rows: list[tuple[int, int]], k: int) -> None:
    """By brute force: every order of the candidates that the scores allow."""
    relevance, scores = (np.array(column, float) for column in zip(*rows, strict=True))
    orders = [o for o in itertools.permutations(range(len(rows))) if (np.diff(scores[list(o)]) <= 0).all()]
    ranked = [relevance[list(o)] for o in orders]
    ideal = sum(r / math.log2(i + 2) for i, r in enumerate(sorted(relevance, reverse=True)[:k]))
    expected = (
        np.mean([1 / (1 + int((r > 0).argmax())) for r in ranked]),
        np.mean([sum(x / math.log2(i + 2) for i, x in enumerate(r[:k])) / ideal for r in ranked]),
        np.mean([(r[:k] > 0).sum() / (relevance > 0).sum() for r in ranked]),
    )
    found = (reciprocal_rank(relevance, scores), ndcg(relevance, scores, k), recall(relevance, scores, k))
    assert found == pytest.approx(expected)
    assert found[1] == pytest.approx(ndcg_score([relevance], [scores], k=k))


def test_model_that_scores_all_alike_gains_nothing_by_the_order_of_the_file() -> None:
    """One relevant of four: mean reciprocal rank (1 + 1/2 + 1/3 + 1/4) / 4 wherever it stands."""
    for place in range(4):
        relevance = np.eye(4)[place]
        scores = ranking_scores(["q"] * 4, relevance, [0.5] * 4, 1, ONE)
        assert scores["mrr"].value == pytest.approx(25 / 48)
        assert scores["recall@1"].value == pytest.approx(1 / 4)


def test_group_without_a_relevant_candidate_is_left_out_and_named() -> None:
    scores = ranking_scores(["a", "a", "b", "b"], [0, 1, 0, 0], [1, 2, 3, 4], 1, ONE)
    assert scores["mrr"].value == 1.0
    assert scores["mrr"].n == 1
    assert "left-out:1" in scores["mrr"].signature


def test_group_with_a_broken_score_has_none() -> None:
    scores = ranking_scores(["a", "a", "b", "b"], [0, 1, 0, 1], [1, 2, 3, math.nan], 5, ONE)
    assert {name: (s.value, s.n, s.n_invalid) for name, s in scores.items()} == dict.fromkeys(scores, (0.5, 2, 1))


@settings(deadline=None, max_examples=50)
@given(rows=CANDIDATES, data=st.data())
def test_scores_do_not_depend_on_the_order(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    moved = data.draw(st.permutations(rows))
    before, after = (ranking_scores(["q"] * len(r), *zip(*r, strict=True), 3, ONE) for r in (rows, moved))
    for name, score in before.items():
        assert score.value == pytest.approx(after[name].value)
        assert 0 <= score.value <= 1 + 1e-12


@settings(deadline=None, max_examples=50)
@given(relevance=st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any))
def test_perfect_order_has_the_best_scores(relevance: list[int]) -> None:
    scores = ranking_scores(["q"] * len(relevance), relevance, relevance, len(relevance), ONE)
    assert [score.value for score in scores.values()] == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_relevance_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="of row 1: wanted a finite number, 0 or above"):
        ranking_scores(["q", "q"], [1.0, bad], [0, 0], 1, ONE)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="k = 0"):
        ranking_scores(["q"], [1], [0], 0, ONE)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=30))
def test_auc_agrees_with_scikit_learn(rows: list[tuple[int, int]]) -> None:
    clicked, scores = zip(*rows, strict=True)
    value = auc(clicked, scores, ONE).value
    if len(set(clicked)) == 1:
        assert math.isnan(value)
    else:
        assert value == pytest.approx(roc_auc_score(clicked, scores))


def test_auc_of_replicates_is_that_of_the_drawn_rows() -> None:
    rng = np.random.default_rng(1)
    clicked = rng.integers(0, 2, 40)
    scores = clicked + rng.integers(0, 4, 40)
    draws = [np.repeat(np.arange(40), drawn(40, 5, r)) for r in range(30)]
    expected = np.quantile([roc_auc_score(clicked[i], scores[i]) for i in draws], [0.025, 0.975])
    score = auc(clicked, scores, Bootstrap(replicates=30, seed=5))
    assert (score.low, score.high) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("clicked", [0, 1])
def test_auc_gives_no_pair_to_a_row_with_a_broken_score(clicked: int) -> None:
    """Four rows in perfect order; of the four pairs those of the broken row are lost."""
    rows = {0: [0.1, 0.2], 1: [0.8, 0.9]}
    rows[clicked][0] = math.nan
    score = auc([0, 0, 1, 1], [*rows[0], *rows[1]], ONE)
    assert score.value == pytest.approx(0.5)
    assert score.n_invalid == 1


def test_click_that_is_a_count_is_refused() -> None:
    with pytest.raises(DataError, match=r"click 2\.0 of row 1"):
        auc([0, 2], [0.1, 0.2], ONE)


def test_pairs_are_won_halved_and_lost() -> None:
    score = pairwise_accuracy([2.0, 1.0, 0.0, math.nan, 5.0], [1.0, 1.0, 1.0, 0.0, -math.inf], ONE)
    assert score.value == pytest.approx((1 + 0.5) / 5)
    assert (score.n, score.n_invalid) == (5, 2)
