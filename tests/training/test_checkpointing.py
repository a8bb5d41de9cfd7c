from __future__ import annotations

import json
from pathlib import Path

from training.pretrain.checkpointing import complete_steps, prune


def make_step(folder: Path, step: int, complete: bool = True, facts: str = "{}") -> None:
    place = folder / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / "__0_0.distcp").write_bytes(b"x")
    if complete:
        (place / ".metadata").write_bytes(b"x")
        (place / "state.json").write_text(facts)


def test_a_step_without_metadata_is_not_complete(tmp_path: Path) -> None:
    """A rank killed while writing leaves only shards."""
    make_step(tmp_path, 10)
    make_step(tmp_path, 20, complete=False)
    (tmp_path / "writing").mkdir()
    assert complete_steps(tmp_path) == [10]


def test_complete_steps_of_a_missing_folder_are_none(tmp_path: Path) -> None:
    assert complete_steps(tmp_path / "nowhere") == []


def test_prune_keeps_the_newest_and_never_the_last_good_one(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        make_step(tmp_path, step)
    make_step(tmp_path, 40, complete=False)
    prune(tmp_path, keep=2)
    assert complete_steps(tmp_path) == [20, 30]
    prune(tmp_path, keep=0)
    assert complete_steps(tmp_path) == [30]
    prune(tmp_path / "nowhere", keep=2)


def test_prune_keeps_the_newest_clean_one_to_go_back_to(tmp_path: Path) -> None:
    """Nothing went wrong before 10 and 20; before 30, 40 and 50 something did."""
    for step in (10, 20, 30, 40, 50):
        make_step(tmp_path, step, facts=json.dumps({"clean": step <= 20}))
    prune(tmp_path, keep=2)
    assert complete_steps(tmp_path) == [20, 40, 50]


def test_checkpoint_whose_removal_was_cut_short_is_not_complete_and_goes_with_the_next(tmp_path: Path) -> None:
    """Some of its files are gone, those that say it is complete are not; its step may be written again."""
    for step in (10, 20, 30):
        make_step(tmp_path, step)
    (tmp_path / "step-00000010").rename(tmp_path / "dropped-00000010")
    (tmp_path / "dropped-00000010" / "__0_0.distcp").unlink()
    assert complete_steps(tmp_path) == [20, 30]
    prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]
