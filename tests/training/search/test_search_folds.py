"""Cross-validation: nothing is in training and in its own fold, whatever the groups."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.errors import DataError
from spark_jobs.manifests import MANIFEST, FileEntry, LabelledSet, file_sha256
from training.search.folds import part_of, write_fold
from training.search_spec import FoldSpec

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "split", "text", "group", "made_by", "made_from")])


def labelled(folder: Path, rows: list[dict[str, str]]) -> LabelledSet:
    (folder / "data").mkdir(parents=True)
    full = [{"text": row["id"], "group": "", "made_by": "", "made_from": ""} | row for row in rows]
    pq.write_table(pa.Table.from_pylist(full, SCHEMA), folder / "data" / "part-0.parquet")
    path = folder / "data" / "part-0.parquet"
    entry = FileEntry(path="data/part-0.parquet", size_bytes=path.stat().st_size, sha256=file_sha256(path))
    handle = LabelledSet(
        step="label", key="0" * 16, night="2026-11-26", format="parquet", num_rows=len(rows), files=(entry,), spec={}, code={},
        libraries={}, task="classification", label_set=("a", "b"),
    )  # fmt: skip
    (folder / MANIFEST).write_text(handle.canonical())
    return LabelledSet.load(folder)


def fold(rows: LabelledSet, out: Path, number: int, folds: int = 4, seed: int = 0) -> dict[str, set[str]]:
    """Ids by split."""
    outcome = write_fold(rows, FoldSpec(number=number, folds=folds, seed=seed), out)
    table = pq.read_table(out / "data")
    assert outcome.counts["in"] == outcome.counts["out"] + sum(
        count for reason, count in outcome.counts.items() if reason.startswith("reject.")
    )
    assert outcome.fields["num_train"] + outcome.fields["num_validation"] == len(table) == outcome.num_rows
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    pairs = list(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))
    return {name: {i for i, split in pairs if split == name} for name in ("train", "validation", "test")}


@settings(max_examples=25, deadline=None)
@given(
    groups=st.lists(st.sampled_from(["", "", "g1", "g2", "g3", "g4", "g5"]), min_size=40, max_size=60),
    splits=st.lists(st.sampled_from(["train", "validation", "test"]), min_size=60, max_size=60),
    seed=st.integers(0, 100),
)
def test_every_row_is_scored_once_and_never_by_a_model_that_saw_it_or_its_group(groups, splits, seed, tmp_path_factory):
    ids = [f"{number:032x}" for number in range(len(groups))]
    rows = [{"id": i, "group": g, "split": s} for i, g, s in zip(ids, groups, splits, strict=False)]
    folder = tmp_path_factory.mktemp("folds")
    whole = labelled(folder / "all", rows)
    usable = {row["id"] for row in rows if row["split"] != "test"}
    spec = FoldSpec(number=0, folds=2, seed=seed)
    if {part_of(row["group"] or row["id"], spec) for row in rows if row["split"] != "test"} != {0, 1}:
        return  # a part is empty, which is refused
    group_of = {row["id"]: row["group"] for row in rows}
    scored = []
    for number in (0, 1):
        parts = fold(whole, folder / str(number), number, folds=2, seed=seed)
        assert parts["test"] == set()
        assert not parts["train"] & parts["validation"]
        assert parts["train"] | parts["validation"] == usable
        assert not {group_of[i] for i in parts["train"]} & {group_of[i] for i in parts["validation"]} - {""}
        scored += sorted(parts["validation"])
    assert sorted(scored) == sorted(usable)


def test_made_row_is_with_its_original_and_is_never_scored(tmp_path):
    originals = [{"id": f"{number:032x}", "split": "train"} for number in range(40)]
    made = [
        {"id": f"{1000 + number:032x}", "split": "train", "made_by": "synonyms", "made_from": f"{number:032x}"}
        for number in range(40)
    ]
    whole = labelled(tmp_path / "all", originals + made)
    for number in range(4):
        parts = fold(whole, tmp_path / str(number), number)
        assert all(int(i, 16) < 1000 for i in parts["validation"])
        copies = {f"{int(i, 16) - 1000:032x}" for i in parts["train"] if int(i, 16) >= 1000}
        assert copies == {i for i in parts["train"] if int(i, 16) < 1000}


def test_row_that_is_added_moves_no_other(tmp_path):
    rows = [{"id": f"{number:032x}", "split": "train"} for number in range(50)]
    before = fold(labelled(tmp_path / "a", rows[:-1]), tmp_path / "fold-a", 1)
    after = fold(labelled(tmp_path / "b", rows), tmp_path / "fold-b", 1)
    assert before["validation"] == after["validation"] - {rows[-1]["id"]}


def test_seed_deals_the_rows_otherwise(tmp_path):
    whole = labelled(tmp_path / "all", [{"id": f"{number:032x}", "split": "train"} for number in range(50)])
    assert fold(whole, tmp_path / "a", 0)["validation"] != fold(whole, tmp_path / "b", 0, seed=1)["validation"]


def test_part_without_a_row_is_refused_naming_the_next_move(tmp_path):
    whole = labelled(
        tmp_path / "all", [{"id": f"{number:032x}", "split": "train", "group": "one"} for number in range(9)]
    )
    full = part_of("one", FoldSpec(number=0, folds=4))
    for number, message in (
        (full, "leaves 0 rows to train on and 9 to score"),
        ((full + 1) % 4, "9 rows to train on and 0 to"),
    ):
        with pytest.raises(DataError, match=message):
            write_fold(whole, FoldSpec(number=number, folds=4), tmp_path / str(number))
