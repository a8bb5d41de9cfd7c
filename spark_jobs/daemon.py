"""PySpark's worker daemon with our imports done before it forks, so that no worker pays for them again."""

import kitoken
import pyarrow as pa
import tokenizers
from pyspark.daemon import manager

import spark_jobs.clean
import spark_jobs.dedup
import spark_jobs.packing
import spark_jobs.readers
import spark_jobs.tokenization
from spark_jobs.history import History
from spark_jobs.schemas import DOCUMENTS
from spark_jobs.specs import CleanSpec, DedupSpec

__all__ = ["kitoken", "manager", "spark_jobs", "tokenizers"]


def load_kernels() -> None:
    """Judge and sign one short text: that loads machine code, tables and the language model for all workers at once."""
    values = {"string": "some words of text", "int": 0, "double": 0.0}
    batch = pa.RecordBatch.from_pylist([{name: values[kind] for name, kind in DOCUMENTS.items()}])
    batch = batch.set_column(batch.schema.get_field_index("priority"), "priority", pa.array([0], pa.int32()))
    spark_jobs.clean.label_batch(batch, CleanSpec())
    spark_jobs.dedup.sign_batch(batch, DedupSpec(), History("", (), (), frozenset()))


if __name__ == "__main__":
    load_kernels()
    manager()
