"""How much of the difference between trials each parameter explains."""

from __future__ import annotations

from collections.abc import Sequence

from training.search.proposals import told
from training.search.trials import Trial
from training.search_spec import SearchSpec

MIN_TRIALS = 4  # fewer say nothing about any parameter


def importances(search: SearchSpec, trials: Sequence[Trial]) -> dict[str, float]:
    """Shares by path, the largest first, summing to 1; empty where too few trials finished or all scored the same.

    PED-ANOVA (arXiv:2304.10255): how far the distribution of the parameter among good trials is from that among all.
    """
    finished = [trial for trial in trials if trial.state == "finished"]
    if len(finished) < MIN_TRIALS or len({trial.value for trial in finished}) < 2:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=search.direction)
    study.add_trials([told(search, trial) for trial in finished])
    found = optuna.importance.get_param_importances(study)
    return {path: round(float(share), 6) for path, share in sorted(found.items(), key=lambda e: (-e[1], e[0]))}
