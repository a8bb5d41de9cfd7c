"""The picture of a training's loss."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import loss_curve

SVG = "{http://www.w3.org/2000/svg}"


def test_picture_of_a_curve_has_a_point_a_step_inside_its_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [{"step": i, "loss": 9.0 / i, "tokens": 1000} for i in range(1, 51)]
    curve, out = tmp_path / "curve.jsonl", tmp_path / "loss.svg"
    curve.write_text("".join(json.dumps(step) + "\n" for step in steps))
    monkeypatch.setattr("sys.argv", ["loss_curve", str(curve), str(out), "--title", "a < b"])
    loss_curve.main()
    picture = ElementTree.parse(out).getroot()
    assert next(picture.iter(f"{SVG}text")).text == "a < b"
    lines = [line.attrib["points"].split() for line in picture.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [50, 50]
    for x, y in (map(float, point.split(",")) for points in lines for point in points):
        assert 0 <= x <= loss_curve.WIDTH
        assert 0 <= y <= loss_curve.HEIGHT


def test_running_mean_of_equal_losses_is_that_loss_from_the_first_step_on() -> None:
    assert loss_curve.running_mean([3.0] * 5) == pytest.approx([3.0] * 5)


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(3.9, 9.1, [4, 5, 6, 7, 8, 9]), (0, 1e6, [0, 2e5, 4e5, 6e5, 8e5, 1e6])]
)
def test_ticks_are_round_numbers_inside_the_range(low: float, high: float, wanted: list[float]) -> None:
    assert loss_curve.ticks(low, high) == pytest.approx(wanted)
