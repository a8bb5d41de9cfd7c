"""What compression did to each layer, as a table beside the model: `report.parquet`, a LayerReport a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.compress.layer_report import LayerReport

REPORT = "report.parquet"
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("num_outputs", pa.int64(), nullable=False),
        pa.field("num_inputs", pa.int64(), nullable=False),
        pa.field("error_before", pa.float64(), nullable=False),
        pa.field("error_after", pa.float64(), nullable=False),
        pa.field("damping", pa.float64(), nullable=False),
        pa.field("fallback", pa.bool_(), nullable=False),
        pa.field("zeros", pa.int64(), nullable=False),
        pa.field("bits", pa.float64(), nullable=False),
    ]
)


def write_reports(folder: Path, reports: Sequence[LayerReport]) -> None:
    """Seconds are left out, so that two runs of one recipe write the same bytes; events told them."""
    rows = [{name: value for name, value in asdict(report).items() if name != "seconds"} for report in reports]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / REPORT)
