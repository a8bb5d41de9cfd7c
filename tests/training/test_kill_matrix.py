"""`make chaos-train` as tests: a rank killed at each moment, started again on two ranks and on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos_train import CASES, RANKS, Moment, outputs, run, try_case, write_shards
from training.pretrain.sequence_order import RowGroup

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> RowGroup:
    return write_shards(tmp_path_factory.mktemp("shards") / "part.parquet")


@pytest.fixture(scope="module")
def unbroken(group: RowGroup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    run(group, out, RANKS, "blocking")
    return out


def test_unbroken_run_with_checkpoints_in_the_background_has_the_same_bytes(
    group: RowGroup, unbroken: Path, tmp_path: Path
) -> None:
    run(group, tmp_path, RANKS, "async")
    assert outputs(tmp_path) == outputs(unbroken)


@pytest.mark.parametrize(("moment", "mode"), CASES, ids=lambda value: getattr(value, "name", value))
def test_run_killed_at_a_moment_goes_on_as_if_unbroken(
    group: RowGroup, unbroken: Path, tmp_path: Path, moment: Moment, mode: str
) -> None:
    found = try_case(group, unbroken, tmp_path, moment, mode)
    assert moment.may_find(found.newest, mode)
    assert found.is_same
    assert found.difference <= 1e-12
