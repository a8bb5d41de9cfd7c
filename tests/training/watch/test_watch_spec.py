"""Settings of the watch that cannot work are refused before anything is watched."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from training.watch.spec import CHECKS, WatchSpec


def test_every_check_is_looked_for_unless_told_otherwise():
    assert WatchSpec().checks == CHECKS
    assert len(set(CHECKS)) == 9


def test_draws_too_few_for_alpha_are_refused_with_the_number_that_would_do():
    with pytest.raises(ValidationError, match="wanted at least 8999 replicates"):
        WatchSpec(replicates=5000)
    assert WatchSpec(replicates=5000, checks=("errors", "cut", "language")).alpha == 0.001


def test_traffic_that_is_deleted_before_it_is_compared_with_is_refused():
    with pytest.raises(ValidationError, match="raise keep_days"):
        WatchSpec(against="traffic", baseline_days=30, keep_days=30)
    assert WatchSpec(against="training", baseline_days=30, keep_days=30).keep_days == 30


def test_a_misspelt_check_is_refused():
    with pytest.raises(ValidationError, match="checks"):
        WatchSpec.model_validate({"checks": ["langauge"]})
