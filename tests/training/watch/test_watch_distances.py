"""Distances: golden values by hand, laws, and what chance makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.watch.compare import binomial_tail, language_bins, normal_tail
from training.watch.distances import (
    compared,
    compared_clusters,
    divergence,
    largest_gap,
    stability_index,
)

COUNTS = st.lists(st.integers(0, 500), min_size=4, max_size=4).filter(any).map(lambda x: np.array(x, np.float64))


def test_stability_index_of_two_bins_is_the_hand_computed_sum():
    live, reference = np.array([29.5, 69.5]), np.array([49.5, 49.5])  # shares 0.3, 0.7 and 0.5, 0.5 once smoothed
    told = (0.3 - 0.5) * math.log(0.3 / 0.5) + (0.7 - 0.5) * math.log(0.7 / 0.5)
    assert stability_index(live, reference) == pytest.approx(told)


def test_stability_index_of_an_empty_bin_is_large_and_finite():
    assert 1 < stability_index(np.array([0.0, 1000.0]), np.array([500.0, 500.0])) < 10


def test_divergence_is_one_without_a_shared_bin_and_nought_for_equal_shares():
    assert divergence(np.array([3.0, 0.0]), np.array([0.0, 9.0])) == pytest.approx(1.0)
    assert divergence(np.array([3.0, 6.0]), np.array([1.0, 2.0])) == pytest.approx(0.0, abs=1e-12)


def test_divergence_of_a_coin_and_a_sure_thing():
    """m = (3/4, 1/4): half of log2(4/3) and half of (log2(2/3) + log2 2) / 2."""
    told = 0.5 * math.log2(4 / 3) + 0.25 * (math.log2(2 / 3) + 1)
    assert divergence(np.array([10.0, 0.0]), np.array([5.0, 5.0])) == pytest.approx(told)


def test_largest_gap_is_at_the_edge_where_shares_part_most():
    assert largest_gap(np.array([1.0, 1.0, 2.0]), np.array([2.0, 2.0, 0.0])) == pytest.approx(0.5)


@settings(max_examples=100, deadline=None)
@given(COUNTS, COUNTS)
def test_distances_are_symmetric_or_bounded_and_nought_on_themselves(a, b):
    assert stability_index(a, b) >= -1e-12
    assert 0 <= divergence(a, b) <= 1 + 1e-12
    assert divergence(a, b) == pytest.approx(divergence(b, a))
    assert 0 <= largest_gap(a, b) <= 1 + 1e-12
    for distance in (stability_index, divergence, largest_gap):
        assert distance(a, a) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(COUNTS, COUNTS, COUNTS)
def test_root_of_the_divergence_obeys_the_triangle_inequality(a, b, c):
    ab, bc, ac = (math.sqrt(max(float(divergence(x, y)), 0.0)) for x, y in ((a, b), (b, c), (a, c)))
    assert ac <= ab + bc + 1e-9


def test_p_values_without_a_difference_are_spread_evenly():
    rng = np.random.default_rng(0)
    law = np.array([0.5, 0.3, 0.15, 0.05])
    p = []
    for seed in range(200):
        reference, live = rng.multinomial(5000, law).astype(float), rng.multinomial(300, law).astype(float)
        p.append(compared(stability_index, live, reference, 999, seed, subtract=True).p)
    assert 0.02 < np.mean(np.array(p) <= 0.1) < 0.18
    assert 0.4 < np.mean(p) < 0.6


def test_p_values_of_clustered_tokens_without_a_difference_are_spread_evenly():
    """Each text is of a topic of its own: tokens taken as independent would alarm in nearly every window."""
    rng = np.random.default_rng(1)

    def texts(num: int) -> np.ndarray:
        return np.array([rng.multinomial(60, rng.dirichlet(np.full(256, 0.05))) for _ in range(num)], float)

    units = texts(300)
    naive, p = [], []
    for seed in range(30):
        live = texts(80).sum(0)
        p.append(compared_clusters(live, units, 80, 300, seed).p)
        naive.append(compared(divergence, live, units.sum(0), 999, seed, subtract=True).p)
    assert np.mean(np.array(naive) <= 0.01) > 0.9
    assert np.mean(np.array(p) <= 0.01) < 0.1
    assert np.mean(np.array(p) <= 0.5) > 0.25


def test_chance_is_taken_off_so_that_small_windows_are_not_far_by_being_small():
    law = np.full(40, 1 / 40)
    rng = np.random.default_rng(2)
    values = [
        compared(stability_index, rng.multinomial(200, law).astype(float), np.full(40, 250.0), 999, seed, subtract=True)
        for seed in range(20)
    ]
    assert np.mean([v.by_chance for v in values]) > 0.15
    assert np.mean([v.value for v in values]) < 0.05


@pytest.mark.parametrize(
    ("hits", "n", "share", "told"),
    [(0, 10, 0.3, 1.0), (10, 10, 0.5, 0.5**10), (2, 3, 0.5, 0.5), (1, 4, 0.25, 1 - 0.75**4)],
)
def test_binomial_tail_is_the_sum_of_its_terms(hits, n, share, told):
    assert binomial_tail(hits, n, share) == pytest.approx(told)


def test_normal_tail_at_the_usual_quantiles():
    assert normal_tail(0.0) == pytest.approx(0.5)
    assert normal_tail(1.959964) == pytest.approx(0.025, rel=1e-5)


def test_languages_rare_in_the_reference_and_new_ones_share_a_bin_and_unknown_is_left_out():
    live, reference = language_bins({"en": 5, "de": 2, "ja": 9, "unknown": 50}, {"en": 990, "de": 9, "unknown": 4})
    assert live.tolist() == [5, 11]
    assert reference.tolist() == [990, 9]
