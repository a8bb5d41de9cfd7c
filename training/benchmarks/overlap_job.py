"""The measure-overlap job: which items of the benchmarks the corpus holds. Inputs: corpus, tokenizer. No model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from spark_jobs.manifests import Column, Corpus, TokenizerFiles
from spark_jobs.requests import Outcome, Request, send
from training.benchmark_spec import BenchmarksJobSpec
from training.benchmarks.items import Item, load_benchmark
from training.benchmarks.overlap import Ids, Overlap, corpus_blocks, overlaps
from training.benchmarks.task_file import TaskFile
from training.evaluate.documents import load_tokenizer
from training.inputs import input_uri

OVERLAPS = "overlaps.parquet"
SCHEMA = pa.schema(
    [
        pa.field("benchmark", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("num_runs", pa.int64(), nullable=False),
        pa.field("num_found", pa.int64(), nullable=False),
    ]
)
COLUMNS = (
    *(Column(name=name, type="string") for name in ("benchmark", "id")),
    *(Column(name=name, type="bigint") for name in ("num_runs", "num_found")),
)


def run(request: Request) -> Outcome:
    """One pass over the corpus for each length of run asked for. Harness tasks are not looked at: they own their texts."""
    spec = BenchmarksJobSpec.model_validate(request.spec)
    corpus = Corpus.load(input_uri(request, "corpus"))
    encoder = load_tokenizer(Path(TokenizerFiles.load(input_uri(request, "tokenizer")).folder()))
    rows: list[dict[str, object]] = []
    asked = [one for one in spec.benchmarks if one.harness is None and one.overlap_tokens]
    num_tokens = 0
    for length in sorted({one.overlap_tokens for one in asked}):
        loaded = [load_benchmark(one) for one in asked if one.overlap_tokens == length]
        items = [(b.spec.name, b.task, item) for b in loaded for item in b.items]
        counter = _Counter()
        found = overlaps(
            [ids_of(encoder, task, item) for _, task, item in items], counter.counted(corpus_blocks(corpus)), length
        )
        num_tokens = counter.num_tokens
        rows += [_row(name, item, one) for (name, _, item), one in zip(items, found, strict=True)]
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), data / OVERLAPS, compression="zstd")
    contaminated = sum(bool(row["num_found"]) for row in rows)
    fields = {"corpus": corpus.address, "num_tokens": num_tokens, "num_contaminated": contaminated}
    send("event", {"job": "measure-overlap"} | fields)
    return Outcome(num_rows=len(rows), format="parquet", columns=COLUMNS, fields=fields)


def ids_of(encoder: Tokenizer, task: TaskFile, item: Item) -> Sequence[int]:
    """What would be learned by heart: the item's own prompt with its solution, without examples."""
    text = f"{item.prompt}{task.delimiter}{item.solution}" if item.prompt else item.solution
    return list(encoder.encode(text, add_special_tokens=False).ids)


def _row(name: str, item: Item, overlap: Overlap) -> dict[str, object]:
    return {"benchmark": name, "id": item.id, "num_runs": overlap.num_runs, "num_found": overlap.num_found}


class _Counter:
    """Counts the tokens that pass by."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def counted(self, blocks: Iterator[tuple[Ids, Ids]]) -> Iterator[tuple[Ids, Ids]]:
        for tokens, lengths in blocks:
            self.num_tokens += len(tokens)
            yield tokens, lengths
