"""How fast the quality classifier scores text on one core, beside scikit-learn's own way to do the same.

    python -m benchmarks.quality_model [--data ../shared/data] [--repeats 5]

Text: novels, speeches and documentation, in pieces of about 4,000 characters. The model learns documentation from the rest.
The peer is HashingVectorizer (words and pairs of words, 2^18 features, each counted once, L2) with the same kind of linear
model. Least CPU time of `--repeats` runs each, in one process, warm. Ends with one JSON line: {"mb", "mb_per_cpu_s",
"peer_mb_per_cpu_s", "ratio", "train_cpu_s", "auc"}.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from spark_jobs.quality_training import area_under_curve, cleaned, fit
from spark_jobs.specs import ClassifierJobSpec

PIECE = 4000  # characters
SPEC = ClassifierJobSpec(good="documentation", bad="novels and speeches")


def pieces(text: str) -> list[str]:
    return [text[at : at + PIECE] for at in range(0, len(text), PIECE)]


def read_texts(data: Path) -> tuple[list[str], list[str]]:
    """(documentation, everything else)."""
    with gzip.open(data / "text/python_docs_rst.jsonl.gz", "rt") as lines:
        documentation = [piece for line in lines for piece in pieces(json.loads(line)["text"])]
    paths = [data / "text" / name for name in ("moby-dick.txt", "tinyshakespeare.txt", "botchan.txt", "wiki.valid.txt")]
    paths += sorted((data / "text/sotu").glob("*.txt"))
    others = [piece for path in paths for piece in pieces(path.read_text(encoding="utf-8", errors="replace"))]
    return cleaned(documentation, SPEC), cleaned(others, SPEC)


def least_cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from sklearn.feature_extraction.text import HashingVectorizer

    good, bad = read_texts(asked.data)
    start = time.process_time()
    model = fit(good[::2], bad[::2], SPEC)
    train_s = time.process_time() - start
    auc = area_under_curve(*(model.margins(pa.array(texts[1::2], pa.string())) for texts in (good, bad)))
    texts = [*good, *bad]
    array = pa.array(texts, pa.string())
    mb = pa.compute.sum(pa.compute.binary_length(array)).as_py() / 1e6
    ours = least_cpu_seconds(lambda: model.score(array), asked.repeats)
    vectorizer = HashingVectorizer(
        ngram_range=(1, SPEC.ngram), n_features=SPEC.num_features, binary=True, norm="l2", alternate_sign=False
    )
    weights = model.weights.astype(np.float64)
    peer = least_cpu_seconds(lambda: 1 / (1 + np.exp(-(vectorizer.transform(texts) @ weights))), 1)
    rates = {
        "mb_per_cpu_s": round(mb / ours, 1),
        "peer_mb_per_cpu_s": round(mb / peer, 2),
        "ratio": round(peer / ours, 1),
    }
    print(json.dumps({"mb": round(mb, 1), **rates, "train_cpu_s": round(train_s, 2), "auc": round(auc, 4)}))


if __name__ == "__main__":
    main()
