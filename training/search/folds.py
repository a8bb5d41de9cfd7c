"""Cross-validation: train and validation of a labelled set, cut anew so that each part is once the one that is scored."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_jobs.errors import DataError
from spark_jobs.manifests import LabelledSet
from spark_jobs.requests import Outcome
from training.search_spec import FoldSpec


def write_fold(labelled: LabelledSet, spec: FoldSpec, out: Path) -> Outcome:
    """The set with part `spec.number` as validation and the others as train. Rows of test are left out altogether, so that
    nothing behind this step can see them.

    Rows of one group, and a row with those made from it, are in one part; made rows are trained on, never scored.
    Raises: DataError if a part would be empty.
    """
    table = pa.concat_tables(pq.read_table(path) for path in labelled.paths())
    parts = np.array([part_of(unit, spec) for unit in _units(table)], dtype=np.int64)
    split = np.array(table["split"].to_pylist())
    made = np.array([bool(name) for name in table["made_by"].to_pylist()], dtype=bool)
    scored = (split != "test") & (parts == spec.number)
    trained = (split != "test") & ~scored
    validation = scored & ~made
    if not validation.any() or not trained.any():
        raise DataError(
            f"labelled set {labelled.address}: part {spec.number} of {spec.folds} leaves {trained.sum()} rows to train on and "
            f"{validation.sum()} to score; lower search.folds or add rows"
        )
    table = table.set_column(
        table.column_names.index("split"), "split", pa.array(np.where(scored, "validation", "train"))
    )
    kept = table.filter(pa.array(trained | validation))
    (out / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(kept, out / "data" / "part-00000.parquet", compression="zstd")
    fields = {
        "task": labelled.task, "label_set": labelled.label_set, "num_train": int(trained.sum()),
        "num_validation": int(validation.sum()),
    }  # fmt: skip
    counts = {
        "in": len(table), "out": len(kept), "reject.test": int((split == "test").sum()),
        "reject.made_from_scored": int((scored & made).sum()),
    }  # fmt: skip
    return Outcome(num_rows=len(kept), format="parquet", columns=labelled.columns, counts=counts, fields=fields)


def part_of(unit: str, spec: FoldSpec) -> int:
    """The part a unit is dealt to: by hash, so a row that is added or taken out moves no other."""
    return int.from_bytes(hashlib.sha256(f"{spec.seed}\0{unit}".encode()).digest()[:8], "big") % spec.folds


def _units(table: pa.Table) -> list[str]:
    """What must stay together, a name a row: the group, that of the original for made rows, else the row itself."""
    ids, groups = table["id"].to_pylist(), table["group"].to_pylist()
    originals = table["made_from"].to_pylist()
    group_of = dict(zip(ids, groups, strict=True))
    return [
        group or group_of.get(original) or original or name
        for name, group, original in zip(ids, groups, originals, strict=True)
    ]
