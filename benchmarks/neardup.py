"""How well near copies are found: LSH with verification against exhaustive Jaccard, on real pairs and on planted edits.

    python -m benchmarks.neardup [--data ../shared/data]

Truth is every pair of texts whose shingle sets reach `min_jaccard`, found by comparing all pairs. A pair counts as found if
one of its texts is removed, or would be, for any text that stays; a removal is right if the text that stays reaches the
threshold with it, which verification promises: precision below 1 is a defect. Recall is that of the bands. No Spark: the
kernels of the dedup job, on one core. Ends with one JSON line: {"recall", "precision", "pairs", "removed"}.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from spark_jobs import minhash
from spark_jobs.near_copies import ALIKE, BUCKET_LEADERS, choose
from spark_jobs.specs import DedupSpec

SPEC = DedupSpec()


class Score(NamedTuple):
    name: str
    texts: int
    pairs: int  # true ones
    found: int
    removed: int
    right: int


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data
    scores = [score(name, texts) for name, texts in corpora(data)]
    table = Table(
        title=f"{SPEC.bands} bands of {SPEC.rows}, {SPEC.ngram}-grams, Jaccard {SPEC.min_jaccard}",
        title_justify="left",
        box=None,
    )
    for column in ("corpus", "texts", "true pairs", "found", "recall", "removed", "precision"):
        table.add_column(column, justify="left" if column == "corpus" else "right")
    for line in scores:
        table.add_row(
            line.name, f"{line.texts:,}", f"{line.pairs:,}", f"{line.found:,}", f"{line.found / max(line.pairs, 1):.3f}",
            f"{line.removed:,}", f"{line.right / max(line.removed, 1):.3f}",
        )  # fmt: skip
    Console(width=110).print(table)
    pairs, removed = sum(line.pairs for line in scores), sum(line.removed for line in scores)
    print(
        json.dumps(
            {
                "recall": round(sum(line.found for line in scores) / max(pairs, 1), 4),
                "precision": round(sum(line.right for line in scores) / max(removed, 1), 4),
                "pairs": pairs,
                "removed": removed,
            }
        )
    )


def corpora(data: Path) -> Iterator[tuple[str, list[str]]]:
    for path in sorted((data / "neardup").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            pairs = [json.loads(line) for line in stream]
        yield (
            path.name.removesuffix(".jsonl.gz"),
            [pair[side] for pair in pairs[:1500] for side in ("text_a", "text_b")],
        )
    for share in (0.005, 0.01, 0.02, 0.03):
        yield f"planted, {share:.1%} of words changed", planted(share)


def planted(share: float) -> list[str]:
    """400 texts of 300 words, and a copy of each with some words changed."""
    draw = random.Random(int(share * 1000))
    texts = []
    for number in range(400):
        words = [f"{draw.randrange(5000):x}" for _ in range(300)]
        texts.append(" ".join(words))
        for place in draw.sample(range(300), int(300 * share)):
            words[place] = f"edit{number}"
        texts.append(" ".join(words))
    return texts


def score(name: str, texts: list[str]) -> Score:
    normals = list(dict.fromkeys(minhash.normalised(text) for text in texts))  # exact copies are another step's work
    shingles, offsets = minhash.shingle_sets(pa.array(normals, pa.string()), SPEC.ngram)
    sets = [shingles[first:stop] for first, stop in pairwise(offsets)]
    truth = alike_pairs(sets)
    keys = minhash.band_keys(shingles, offsets, SPEC.bands, SPEC.rows, SPEC.seed)
    verified = {pair: truth[pair] for pair in candidates(keys, sets) if pair in truth}
    gone = removals(verified)
    found = sum(left in gone or right in gone for left, right in truth)
    right = sum((min(a, b), max(a, b)) in truth and b not in gone for a, b in gone.items())
    return Score(name, len(normals), len(truth), found, len(gone), right)


def alike_pairs(sets: list[np.ndarray]) -> dict[tuple[int, int], float]:
    """Every pair that reaches the threshold, by counting shared shingles through an inverted index: exhaustive."""
    holders: dict[int, list[int]] = defaultdict(list)
    for number, shingles in enumerate(sets):
        for shingle in shingles:
            holders[int(shingle)].append(number)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for numbers in holders.values():
        for place, right in enumerate(numbers):
            for left in numbers[:place]:
                shared[left, right] += 1
    jaccard = {(a, b): both / (len(sets[a]) + len(sets[b]) - both) for (a, b), both in shared.items()}
    return {pair: value for pair, value in jaccard.items() if value >= SPEC.min_jaccard}


def candidates(keys: np.ndarray, sets: list[np.ndarray]) -> set[tuple[int, int]]:
    buckets: dict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(keys):
        if len(sets[number]):
            for key in row:
                buckets[int(key)].append(number)
    return {
        (left, right)
        for numbers in buckets.values()
        for at, right in enumerate(numbers)
        for left in numbers[: min(at, BUCKET_LEADERS)]
    }


def removals(verified: dict[tuple[int, int], float]) -> dict[int, int]:
    """Removed text -> the text that stays, by the job's own choice."""
    rows = [
        {"doc_id": f"{right:08d}", "keeper": f"{left:08d}", "night": None, "jaccard": value}
        for (left, right), value in sorted(verified.items(), key=lambda item: (item[0][1], item[0][0]))
    ]
    schema = pa.schema([(name, pa.float64() if name == "jaccard" else pa.string()) for name in ALIKE])
    batches = [pa.RecordBatch.from_pylist(rows, schema=schema)] if rows else []
    return {int(row["doc_id"]): int(row["keeper"]) for batch in choose(iter(batches)) for row in batch.to_pylist()}


if __name__ == "__main__":
    main()
