"""What a search leaves: its trials, the best one as a spec that runs alone, and two pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from spark_jobs.manifests import Frozen
from spark_jobs.requests import Outcome
from training.search.importance import importances
from training.search.pictures import history, importance_bars
from training.search.trials import Trial, best_trial
from training.search_spec import SearchSpec


class SearchReportSpec(Frozen):
    """run: the fine-tuning with the best trial's values. metric: what was compared."""

    search: SearchSpec
    trials: tuple[Trial, ...]
    run: dict[str, Any]
    metric: str


def write_report(spec: SearchReportSpec, out: Path) -> Outcome:
    """trials.json, importance.json, best.yaml (for `nightmill finetune`), history.svg, importance.svg."""
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    best = best_trial(spec.search, spec.trials)
    shares = importances(spec.search, spec.trials)
    trials = [trial.model_dump(mode="json") for trial in spec.trials]
    (data / "trials.json").write_text(json.dumps(trials, indent=1, ensure_ascii=False) + "\n")
    (data / "importance.json").write_text(json.dumps(shares, indent=1) + "\n")
    (data / "best.yaml").write_text(yaml.safe_dump(spec.run, sort_keys=False, allow_unicode=True))
    (data / "history.svg").write_text(history(spec.search, spec.trials, spec.metric))
    (data / "importance.svg").write_text(importance_bars(shares))
    states = [trial.state for trial in spec.trials]
    fields = {
        "metric": spec.metric, "best": best.number, "value": best.value, "num_finished": states.count("finished"),
        "num_pruned": states.count("pruned"), "num_failed": states.count("failed"),
    }  # fmt: skip
    return Outcome(num_rows=len(states), format="json", fields=fields)
