"""PySpark's worker daemon with our imports done before it forks, so that no worker pays for them again."""

import kitoken
import tokenizers
from pyspark.daemon import manager

import spark_jobs.minhash
import spark_jobs.packing
import spark_jobs.readers
import spark_jobs.text_rules

__all__ = ["kitoken", "manager", "spark_jobs", "tokenizers"]

if __name__ == "__main__":
    manager()
