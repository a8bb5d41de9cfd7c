"""What a night is expected to take: from earlier outputs of the same steps, in time, bytes and money."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spark_jobs.errors import DiskFull, RequestError
from spark_jobs.manifests import MANIFEST, REPORT
from tasks.artifacts import describe_total
from tasks.engine import StepResult
from tasks.forecast import Forecast, forecast, require_room
from tasks.prices import Prices
from tasks.workspace import Workspace


def output(workspace: Workspace, name: str, seconds: float, size: int, gpu_seconds: float = 0.0) -> None:
    folder = workspace.at(f"kind/{name}")
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"files": [{"size_bytes": size // 2}, {"size_bytes": size - size // 2}]}))
    report = {"seconds": seconds, "cpu_seconds": 2 * seconds, "peak_mb": 1.0}
    (folder / REPORT).write_text(json.dumps(report | ({"gpu_seconds": gpu_seconds} if gpu_seconds else {})))


def plan(*steps: str, state: str = "would run") -> tuple[StepResult, ...]:
    return tuple(StepResult(step=step, state=state, why="") for step in steps)  # type: ignore[arg-type]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "pipeline")


def test_forecast_of_a_step_is_the_median_of_its_earlier_runs(workspace: Workspace) -> None:
    for number, seconds in enumerate((1.0, 9.0, 2.0)):
        output(workspace, f"train-{number}", seconds, size=int(seconds * 1000))

    told = forecast(workspace, plan("train"))

    assert (told.seconds, told.cpu_seconds, told.written_bytes) == (2.0, 4.0, 2000)
    assert told.steps[0].num_runs == 3


def test_step_whose_name_begins_like_another_is_not_taken_for_it(workspace: Workspace) -> None:
    output(workspace, "evaluate-dense-1a", 5.0, size=10)

    assert forecast(workspace, plan("evaluate")).unknown == ("evaluate",)


def test_finished_steps_cost_nothing(workspace: Workspace) -> None:
    output(workspace, "train-1", 5.0, size=10)

    told = forecast(workspace, plan("train", state="cached"))

    assert told.seconds == told.written_bytes == 0
    assert describe_total(told) == "nothing to run"


def test_cost_is_of_busy_cores_and_occupied_accelerators(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_CPU_HOUR", "0.5")
    monkeypatch.setenv("NIGHTMILL_GPU_HOUR", "2")
    output(workspace, "train-1", 1800.0, size=10, gpu_seconds=3600.0)

    told = forecast(workspace, plan("train"))

    assert told.cost == pytest.approx(0.5 + 2.0)  # an hour of one core, an hour of one accelerator
    assert "cost 2.5" in describe_total(told)


def test_price_that_is_no_number_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_GPU_HOUR", "two")

    with pytest.raises(RequestError, match="NIGHTMILL_GPU_HOUR='two'"):
        Prices.of_this_machine()


def test_night_that_cannot_fit_is_refused_with_its_largest_steps(workspace: Workspace) -> None:
    output(workspace, "train-1", 1.0, size=10**15)
    told = forecast(workspace, plan("train"))

    assert not told.fits
    with pytest.raises(DiskFull, match=r"train 953,674,316 MiB.*nightmill maintenance"):
        require_room(workspace, told)


def test_output_without_a_report_is_no_history(workspace: Workspace) -> None:
    output(workspace, "train-1", 1.0, size=10)
    (workspace.at("kind/train-1") / REPORT).unlink()

    told: Forecast = forecast(workspace, plan("train"))

    assert told.unknown == ("train",)
    assert "1 that never ran here" in describe_total(told)
