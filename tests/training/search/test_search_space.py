"""Search specs and points of a space."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.search.space import drawn, grid, grid_values
from training.search_spec import ParameterSpec, SearchSpec

RATE = ParameterSpec(path="finetune.optimizer.learning_rate", low=1e-5, high=1e-2, log=True, num_points=4)
RANK = ParameterSpec(path="finetune.method.rank", low=2, high=16, log=True)
KIND = ParameterSpec(path="finetune.method.kind", choices=("full", "lora"))


def test_grid_has_every_combination_and_the_last_parameter_changes_fastest():
    points = grid([KIND, RANK])
    assert [(p[KIND.path], p[RANK.path]) for p in points] == [
        ("full", 2), ("full", 6), ("full", 16), ("lora", 2), ("lora", 6), ("lora", 16),
    ]  # fmt: skip


def test_grid_of_a_range_of_rates_is_even_in_its_logarithm():
    assert grid_values(RATE) == [1e-5, 1e-4, 1e-3, 1e-2]


def test_grid_of_whole_numbers_has_each_once():
    assert grid_values(ParameterSpec(path="finetune.seed", low=1, high=3, num_points=9)) == [1, 2, 3]


@given(seed=st.integers(0, 2**32), number=st.integers(0, 10_000))
def test_drawn_values_are_in_the_space_and_depend_on_seed_and_number_alone(seed, number):
    values = drawn([RATE, RANK, KIND], seed, number)
    assert 1e-5 <= values[RATE.path] <= 1e-2
    assert isinstance(values[RANK.path], int)
    assert 2 <= values[RANK.path] <= 16
    assert values[KIND.path] in ("full", "lora")
    assert values == drawn([RATE, RANK, KIND], seed, number)
    assert float(f"{values[RATE.path]:.4g}") == values[RATE.path]


def test_draws_of_rates_are_even_over_decades():
    rates = [drawn([RATE], 1, number)[RATE.path] for number in range(3000)]
    decades = [sum(math.floor(math.log10(rate)) == decade for rate in rates) for decade in (-5, -4, -3)]
    assert all(880 < count < 1120 for count in decades)  # 1000 each, 4.6 standard deviations


def test_draws_of_whole_numbers_reach_both_ends_alike():
    dice = ParameterSpec(path="finetune.seed", low=1, high=6)
    seen = [drawn([dice], 3, number)[dice.path] for number in range(6000)]
    assert all(860 < seen.count(face) < 1140 for face in range(1, 7))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "label.task", "choices": ["a"]}, "begins with finetune, augment, base"),
        ({"path": "finetune..seed", "choices": [1]}, "wanted a dotted path"),
        ({"path": "finetune.seed"}, "wanted choices, or both low and high"),
        ({"path": "finetune.seed", "low": 3, "high": 3}, "low 3 must be below high 3"),
        ({"path": "finetune.seed", "low": 0, "high": 3, "log": True}, "log wants low above 0"),
        ({"path": "finetune.epochs", "low": 1.0, "high": math.inf}, "both finite"),
        ({"path": "finetune.seed", "choices": [1], "low": 0}, "choices and a range do not go together"),
    ],
)
def test_wrong_parameter_is_refused_and_says_what_was_wanted(fields, message):
    with pytest.raises(ValidationError, match=message):
        ParameterSpec.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": [KIND, KIND]}, "has finetune.method.kind twice"),
        ({"space": [KIND, {"path": "finetune.method", "choices": [{}]}]}, "lies inside finetune.method"),
        ({"pruning": {"kind": "median"}}, "nothing to compare before the end"),
        ({"pruning": {"kind": "median", "budgets": [0.5, 0.25]}}, "wanted rising shares"),
        ({"pruning": {"kind": "median", "budgets": [1.0]}}, "below 1"),
        ({"pruning": {"budgets": [0.5]}}, "set pruning.kind"),
        ({"metric": "mse"}, "mse is an error: set search.direction to minimize"),
    ],
)
def test_search_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        SearchSpec.model_validate({"space": [KIND]} | fields)


def test_stages_are_folds_or_budgets_or_the_whole_trial():
    def stages(**fields):
        search = SearchSpec.model_validate({"space": [KIND], "folds": 3} | fields)
        return [(stage.folds, stage.budget) for stage in search.stages]

    assert stages() == [((0, 1, 2), 1.0)]
    assert stages(pruning={"kind": "median"}) == [((0,), 1.0), ((1,), 1.0), ((2,), 1.0)]
    assert stages(pruning={"kind": "halving", "budgets": [0.25]}) == [((0, 1, 2), 0.25), ((0, 1, 2), 1.0)]
