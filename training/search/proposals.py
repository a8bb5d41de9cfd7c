"""Which trials come next: a pure function of the search's spec and its earlier trials, in order of their numbers.

Optuna keeps its state in a study that grows as trials end, in the order in which they happen to end. Here a study is built
anew for each wave, from the trials before it, with a sampler seeded by the wave's place: nothing needs to be stored, and
the same trials come whatever was killed, cached or faster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from training.search.space import drawn, grid, tidy
from training.search.trials import Trial
from training.search_spec import ParameterSpec, SearchSpec, Values

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def propose(search: SearchSpec, trials: Sequence[Trial]) -> list[Trial]:
    """The next wave, none of it run; empty when the search is over. A grid and random draws are one wave."""
    first = len(trials)
    match search.method:
        case "grid":
            found = grid(search.space)[first:]
        case "random":
            found = [drawn(search.space, search.seed, number) for number in range(first, search.num_trials)]
        case "bayesian":
            found = learned(search, trials, min(search.max_parallel, search.num_trials - first))
    return [Trial(number=first + place, values=values) for place, values in enumerate(found)]


def learned(search: SearchSpec, trials: Sequence[Trial], count: int) -> list[Values]:
    """`count` proposals of TPE. Those of the wave, which have no score yet, are taken for bad ones, so they spread. The first
    num_random of a search are the draws that method random makes."""
    if count <= 0:
        return []
    study = _study(search, trials)
    asked = []
    for number in range(len(trials), len(trials) + count):
        if number < search.num_random:
            study.enqueue_trial(_to_optuna(search.space, drawn(search.space, search.seed, number)))
        asked.append(study.ask({parameter.path: _distribution(parameter) for parameter in search.space}))
    return [_from_optuna(search.space, trial.params) for trial in asked]


def _study(search: SearchSpec, trials: Sequence[Trial]) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int.from_bytes(hashlib.sha256(f"{search.seed} {len(trials)}".encode()).digest()[:4], "big")
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1)
    study = optuna.create_study(direction=search.direction, sampler=sampler)
    study.add_trials([told(search, trial) for trial in trials])
    return study


def told(search: SearchSpec, trial: Trial) -> FrozenTrial:
    """A trial that ended, as Optuna knows it. A pruned one counts with the score it was stopped at."""
    import optuna
    from optuna.trial import TrialState

    states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    return optuna.trial.create_trial(
        state=states[trial.state],
        value=trial.value,
        params=_to_optuna(search.space, trial.values),
        distributions={parameter.path: _distribution(parameter) for parameter in search.space},
        intermediate_values=dict(enumerate(trial.stages)),
    )


def _distribution(parameter: ParameterSpec) -> BaseDistribution:
    """Choices by their place in the list: Optuna takes no lists or mappings as choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.choices:
        return CategoricalDistribution(range(len(parameter.choices)))
    assert parameter.low is not None
    assert parameter.high is not None
    if isinstance(parameter.low, int) and isinstance(parameter.high, int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _to_optuna(space: Sequence[ParameterSpec], values: Values) -> dict[str, Any]:
    return {p.path: p.choices.index(values[p.path]) if p.choices else values[p.path] for p in space}


def _from_optuna(space: Sequence[ParameterSpec], params: dict[str, Any]) -> Values:
    return {p.path: p.choices[params[p.path]] if p.choices else tidy(p, params[p.path]) for p in space}
