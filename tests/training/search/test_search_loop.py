"""Proposals, pruning and the loop, on an objective that costs nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from spark_jobs.errors import DataError
from training.search.loop import is_whole, run_search
from training.search.pruning import reason_to_stop
from training.search.trials import Piece, PieceScore, Trial, best_trial
from training.search_spec import PruningSpec, SearchSpec

RATE = "finetune.optimizer.learning_rate"
RANK = "finetune.method.rank"
KIND = "finetune.method.targets"
SPACE = [
    {"path": RATE, "low": 1e-5, "high": 1e-1, "log": True},
    {"path": RANK, "low": 2, "high": 16},
    {"path": KIND, "choices": [["query"], ["query", "value"], []]},
]


def make_search(**fields: Any) -> SearchSpec:
    return SearchSpec.model_validate({"space": SPACE, "num_trials": 24, "max_parallel": 3, "seed": 5} | fields)


def score(piece: Piece) -> PieceScore:
    """Best at a rate of 1e-3 and rank 9; folds differ a little, a small budget says less."""
    values = piece.values
    far = (math.log10(values[RATE]) + 3) ** 2 + 0.02 * (values[RANK] - 9) ** 2 + 0.1 * len(values[KIND])
    value = -far * piece.budget + 0.001 * piece.fold
    return PieceScore(value=value, low=value - 0.1, high=value + 0.1)


def run(search: SearchSpec, evaluate=lambda pieces: [score(piece) for piece in pieces]) -> list[Trial]:
    return [trial for wave in run_search(search, evaluate) for trial in wave]


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_same_search_gives_the_same_trials_and_another_seed_others(method):
    trials = run(make_search(method=method))
    assert len(trials) == 24
    assert [trial.number for trial in trials] == list(range(24))
    assert trials == run(make_search(method=method))
    assert trials != run(make_search(method=method, seed=6))


@pytest.mark.parametrize("pruning", [{}, {"kind": "halving", "budgets": [0.5]}])
@pytest.mark.parametrize("method", ["grid", "random", "bayesian"])
def test_search_stopped_anywhere_goes_on_with_the_same_trials(method, pruning):
    search = make_search(method=method, num_trials=27, pruning=pruning)
    whole = run(search)
    finished: dict[str, PieceScore] = {}

    def with_a_budget_of(left: int) -> list[Trial]:
        def evaluate(pieces):
            nonlocal left
            for piece in pieces:
                if piece.model_dump_json() not in finished and left:
                    left -= 1
                    finished[piece.model_dump_json()] = score(piece)
            return [finished.get(piece.model_dump_json()) for piece in pieces]

        return run(search, evaluate)

    rounds = 0
    while not is_whole(search, found := with_a_budget_of(5)):
        assert found == whole[: len(found)]
        rounds += 1
    assert found == whole
    assert rounds >= 5


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_more_trials_are_the_same_ones_and_some_more(method):
    assert run(make_search(method=method, num_trials=13)) == run(make_search(method=method))[:13]


def test_first_bayesian_trials_are_the_draws_of_random():
    bayesian = run(make_search(method="bayesian", num_random=7))
    random = run(make_search(method="random"))
    same = [a.values == b.values for a, b in zip(bayesian, random, strict=True)]
    assert same[:7] == [True] * 7
    assert not any(same[7:])


def test_trials_of_one_bayesian_wave_differ():
    values = [str(trial.values) for trial in run(make_search(method="bayesian", max_parallel=6))]
    assert all(len(set(values[first : first + 6])) == 6 for first in range(0, 24, 6))


def test_bayesian_finds_better_settings_than_random_over_ten_seeds():
    def mean_best(method):
        searches = [make_search(method=method, seed=seed, num_trials=30) for seed in range(10)]
        return sum(best_trial(search, run(search)).value for search in searches) / len(searches)

    assert mean_best("bayesian") > mean_best("random") + 0.05


def test_less_is_better_where_the_direction_says_so():
    def error(pieces):
        return [PieceScore(value=-score(piece).value) for piece in pieces]

    search = make_search(method="bayesian", direction="minimize")
    best = best_trial(search, run(search, error))
    assert best.value == min(trial.value for trial in run(search, error))


def test_value_of_a_trial_is_the_mean_over_its_folds():
    trial = run(make_search(method="random", folds=4))[0]
    assert trial.state == "finished"
    assert len(trial.scores) == 4
    assert trial.value == pytest.approx(sum(trial.scores) / 4, abs=1e-15)
    assert trial.low is None


def test_pruned_trial_is_recorded_with_its_reason_and_costs_nothing_more():
    seen: list[Piece] = []

    def evaluate(pieces):
        seen.extend(pieces)
        return [score(piece) for piece in pieces]

    trials = run(make_search(method="random", folds=3, pruning={"kind": "median"}), evaluate)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert len(pruned) == 18  # the worse half after fold 0, and half of the others after fold 1
    assert all(trial.value is None and "worse than the median" in trial.why for trial in pruned)
    for trial in trials:
        assert sum(piece.trial == trial.number for piece in seen) == len(trial.stages) == len(trial.scores)


def test_halving_keeps_the_best_half_at_each_budget():
    search = make_search(method="random", num_trials=16, pruning={"kind": "halving", "budgets": [0.25, 0.5]})
    trials = run(search)
    reached = [sum(len(trial.stages) > stage for trial in trials) for stage in range(3)]
    assert reached == [16, 8, 4]
    best_of_all = max(trials, key=lambda trial: trial.stages[0])
    assert best_trial(search, trials) == best_of_all


def test_failed_piece_fails_its_trial_alone():
    def evaluate(pieces):
        return [PieceScore(failure="loss is nan") if piece.values[RANK] > 12 else score(piece) for piece in pieces]

    trials = run(make_search(method="bayesian"), evaluate)
    failed = [trial for trial in trials if trial.values[RANK] > 12]
    assert failed
    assert all(trial.state == "failed" and trial.why == "loss is nan" for trial in failed)
    assert all(trial.state == "finished" for trial in trials if trial not in failed)


def test_search_without_a_finished_trial_says_why():
    search = make_search(method="random", num_trials=2)
    trials = run(search, lambda pieces: [PieceScore(failure="loss is nan")] * len(pieces))
    with pytest.raises(DataError, match=r"none of 2 trials finished \(loss is nan\); narrow search.space"):
        best_trial(search, trials)


@pytest.mark.parametrize(
    ("kind", "direction", "value", "seen", "stops"),
    [
        ("median", "maximize", 0.4, [0.4, 0.5, 0.6], True),
        ("median", "maximize", 0.5, [0.4, 0.5, 0.6], False),
        ("median", "minimize", 0.6, [0.4, 0.5, 0.6], True),
        ("median", "maximize", 0.1, [0.1, 0.9], False),  # too few to judge
        ("halving", "maximize", 0.5, [0.4, 0.5, 0.6, 0.7], True),
        ("halving", "maximize", 0.6, [0.4, 0.5, 0.6, 0.7], False),
        ("halving", "maximize", 0.5, [0.5, 0.5, 0.5, 0.5], False),  # equal scores fare alike
        ("none", "maximize", 0.1, [0.1, 0.8, 0.9], False),
    ],
)
def test_trial_stops_by_its_place_among_those_that_came_as_far(kind, direction, value, seen, stops):
    assert bool(reason_to_stop(PruningSpec(kind=kind), direction, value, seen)) is stops
