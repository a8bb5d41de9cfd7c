"""What a search leaves behind: files that say it again, and pictures."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import yaml

from training.search.importance import importances
from training.search.report import SearchReportSpec, write_report
from training.search.trials import Trial
from training.search_spec import SearchSpec

RATE, SEED = "finetune.optimizer.learning_rate", "finetune.seed"
SEARCH = SearchSpec.model_validate(
    {"method": "random", "space": [{"path": RATE, "low": 0.0, "high": 1.0}, {"path": SEED, "low": 0, "high": 9}]}
)


def trial(number: int, rate: float, seed: int, **fields) -> Trial:
    value = round(1 - rate, 3)
    scored = {"state": "finished", "stages": (value,), "scores": (value,), "value": value} | fields
    return Trial(number=number, values={RATE: rate, SEED: seed}, **scored)


TRIALS = (
    *(trial(n, (7 * n % 20) / 20, 3 * n % 10) for n in range(20)),
    trial(20, 0.9, 1, state="pruned", value=None, why="worse than the <median>"),
    trial(21, 0.9, 2, state="failed", value=None, stages=(), scores=(), why="loss is nan"),
)


def test_parameter_that_decides_the_score_has_nearly_all_importance():
    shares = importances(SEARCH, TRIALS)
    assert list(shares) == [RATE, SEED]
    assert shares[RATE] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)


def test_importance_of_trials_that_all_scored_the_same_is_not_told():
    same = [t.model_copy(update={"value": 0.5}) for t in TRIALS[:20]]
    assert importances(SEARCH, same) == {}
    assert importances(SEARCH, TRIALS[:3]) == {}


def test_report_tells_the_trials_the_best_run_and_draws_every_trial(tmp_path):
    spec = SearchReportSpec(search=SEARCH, trials=TRIALS, run={"name": "x", "finetune": {"seed": 0}}, metric="accuracy")
    outcome = write_report(spec, tmp_path)
    data = tmp_path / "data"
    assert [Trial.model_validate(told) for told in json.loads((data / "trials.json").read_text())] == list(TRIALS)
    assert yaml.safe_load((data / "best.yaml").read_text()) == spec.run
    assert outcome.num_rows == 22
    assert (outcome.fields["best"], outcome.fields["value"]) == (0, 1.0)
    assert [outcome.fields[f"num_{state}"] for state in ("finished", "pruned", "failed")] == [20, 1, 1]
    svg = ElementTree.fromstring((data / "history.svg").read_text())
    titles = [node.text for node in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 22
    assert "trial 20: pruned worse than the <median>" in titles
    assert RATE in (data / "importance.svg").read_text()


def test_report_is_the_same_bytes_each_time(tmp_path):
    spec = SearchReportSpec(search=SEARCH, trials=TRIALS, run={}, metric="accuracy")
    for name in ("a", "b"):
        write_report(spec, tmp_path / name)
    first = {p.name: p.read_bytes() for p in (tmp_path / "a" / "data").iterdir()}
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "b" / "data").iterdir()}
    assert len(first) == 5


def test_history_of_a_single_failed_trial_can_be_drawn(tmp_path):
    failed = trial(1, 0.5, 1, state="failed", value=None, stages=(), scores=(), why="nan")
    spec = SearchReportSpec(search=SEARCH, trials=(trial(0, 0.5, 1), failed), run={}, metric="accuracy")
    write_report(spec, tmp_path)
    ElementTree.fromstring((tmp_path / "data" / "history.svg").read_text())
    ElementTree.fromstring((tmp_path / "data" / "importance.svg").read_text())
