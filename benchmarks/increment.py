"""Does a night's deduplication cost follow the night, or the history? The same night against a history and one ten times it.

    python -m benchmarks.increment [--documents 4000] [--batch 2000] [--repeats 3]

Both histories hold the documents of which the night brings copies: one in twenty exactly, one in twenty with five words
changed. Times are the least of `repeats` runs in one warm session. Ends with one JSON line: {"time_ratio", "bytes_ratio"},
the large history over the small one; bytes are those of the index that look-ups touched (64-byte lines).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.jobs import publish_history, publish_texts, run_job
from spark_jobs.manifests import Corpus, Documents
from spark_jobs.session import spark_session
from spark_jobs.specs import DedupSpec

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TIMES = 10  # the large history over the small one
WORDS, CHANGED_WORDS = 250, 5  # of a document; a copy with five changed shares some 0.8 of its shingles
COPIES = 20  # one document in so many is an exact copy, and one a near copy
SPEC = DedupSpec()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=4_000, help="of the small history")
    parser.add_argument("--batch", type=int, default=2_000, help="documents of the night")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    spark = spark_session()
    with tempfile.TemporaryDirectory() as folder:
        small, large = [
            measure(spark, Path(folder), size, asked.documents, asked.batch, asked.repeats)
            for size in (asked.documents, asked.documents * TIMES)
        ]
    spark.stop()
    ratios = {"time_ratio": round(large[0] / small[0], 3), "bytes_ratio": round(large[1] / small[1], 3)}
    print(json.dumps(ratios))


def measure(spark: SparkSession, folder: Path, size: int, shared: int, batch: int, repeats: int) -> tuple[float, int]:
    """(seconds, bytes of the index read) of one night against a history of `size` documents."""
    root = folder / str(size)
    earlier = publish_texts(root, "first", history_texts(size))
    unique = run_job(spark, root, Documents, "dedup", SPEC, "first", {"documents": earlier})
    history = publish_history(root, "first", unique)
    tonight = publish_texts(root, "night", night_texts(batch, shared))
    runs = [timed_night(spark, root, tonight, history) for _ in range(repeats + 1)]  # the first one warms up
    seconds = min(run[0] for run in runs[1:])
    counts = runs[0][1].counts
    removed = {name: count for name, count in counts.items() if name.startswith("reject.")}
    print(f"{size:>9,} documents: {seconds:6.2f} s, {counts['index.bytes_read']:>12,} bytes of the index  {removed}")
    return seconds, counts["index.bytes_read"]


def timed_night(spark: SparkSession, root: Path, tonight: Documents, history: Corpus) -> tuple[float, Documents]:
    started = time.monotonic()
    done = run_job(spark, root, Documents, "dedup", SPEC, "night", {"documents": tonight, "history": history})
    return time.monotonic() - started, done


def history_texts(size: int) -> list[str]:
    return [" ".join(document(number)) for number in range(size)]


def document(number: int) -> list[str]:
    """Words of a Zipf-like vocabulary; the same for the same number."""
    draw = random.Random(number)
    return [f"w{int(draw.paretovariate(0.6)) % 50_000}" for _ in range(WORDS)]


def night_texts(batch: int, shared: int) -> list[str]:
    texts = []
    for number in range(batch):
        words = document(number * (shared // batch or 1) % shared)
        if number % COPIES == 1:
            for place in random.Random(-number).sample(range(WORDS), CHANGED_WORDS):
                words[place] = f"x{number}"
        elif number % COPIES > 1:
            words = document(10**9 + number)
        texts.append(" ".join(words))
    return texts


if __name__ == "__main__":
    main()
