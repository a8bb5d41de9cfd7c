"""Where the time of benchmarks/corpus.py goes: each kernel of the chain alone, on one core, without Spark.

    python -m benchmarks.kernels [--mb 8]

The same corpus and rules as benchmarks/corpus.py, in memory. CPU seconds, least of three, after a first call that compiles.
Ends with one JSON line: MB/s of text of each kernel, and `all`: what one core could do if Spark, files and copies cost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.corpus import CLEAN, base_passages, make_tokenizer, write_corpus
from spark_jobs import encoder, language, minhash, mojibake, pii, quality_rules, text_rules
from spark_jobs.specs import DedupSpec

REPEATS = 3
DEDUP = DedupSpec()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=8)
    asked = parser.parse_args()
    print(
        f"{datetime.now(UTC):%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        passages = list(base_passages())
        corpus = write_corpus(Path(folder) / "corpus", passages, asked.mb)
        lines = [line for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
        tokenizer = make_tokenizer(Path(folder) / "tokenizer", passages)
        speeds = measure(lines, encoder.encoder(str(tokenizer / "tokenizer.json"), is_fast=True))
    for name, speed in speeds.items():
        print(f"{name:>12}  {speed:8.1f} MB/s")
    print(json.dumps({name: round(speed, 1) for name, speed in speeds.items()}))


def measure(lines: list[str], encode: encoder.Encoder) -> dict[str, float]:
    """MB/s of each kernel in the order of the chain, each on what the one before leaves; documents are not left out."""
    texts = pa.array([json.loads(line)["text"] for line in lines])
    megabytes = sum(len(line.encode()) for line in lines) / 1e6
    seconds: dict[str, float] = {}

    def timed(name: str, kernel: Callable[[], Any]) -> Any:
        kernel()
        took = []
        for _ in range(REPEATS):
            started = time.process_time()
            result = kernel()
            took.append(time.process_time() - started)
        seconds[name] = min(took)
        return result

    timed("json", lambda: [json.loads(line) for line in lines])
    texts = timed("mojibake", lambda: mojibake.repair(texts))
    texts = timed("normalise", lambda: text_rules.normalise(texts))
    texts = timed("lines", lambda: quality_rules.strip_lines(texts, CLEAN))
    texts, _ = timed("personal", lambda: pii.mask(texts, CLEAN.mask_pii))
    timed("language", lambda: language.identify(texts))
    timed("rules", lambda: quality_rules.measure(texts, CLEAN))
    folded = timed("fold", lambda: pa.array([minhash.normalised(text) for text in texts.to_pylist()]))
    shingles = timed("shingles", lambda: minhash.shingle_sets(folded, DEDUP.ngram))
    timed("minhash", lambda: minhash.band_keys(*shingles, DEDUP.bands, DEDUP.rows, DEDUP.seed))
    rows = timed("tokens", lambda: encode.encode(texts.to_pylist()))
    timed("arrow", lambda: pa.array(rows, pa.list_(pa.int32())))
    return {name: megabytes / took for name, took in seconds.items()} | {"all": megabytes / sum(seconds.values())}


if __name__ == "__main__":
    main()
