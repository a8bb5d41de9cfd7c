"""The jobs of benchmarks through the application: shards, cache, overlap with a real corpus, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from training.benchmarks.results import BenchmarkResult, read_results
from training.manifests import BenchmarkAnswers, BenchmarkScorecard, CorpusOverlap, ModelFolder

TASK = {
    "version": 1, "kind": "multiple_choice", "splits": {"test": "items.jsonl"}, "prompt": "{{ q }}",
    "choices": ["{{ a }}", "{{ b }}"], "gold": 0, "slices": {"part": "part"},
}  # fmt: skip
ITEMS = [{"q": f"what is {i}", "a": f"the answer {i}", "b": "no " * (i + 1), "part": "xy"[i % 2]} for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return folder


def publish_model(make: Any, root: Path, source: Path, key: str) -> ModelFolder:
    target = root / "models" / f"import-model-{key}"
    shutil.copytree(source, target / "data")
    fields = {"scheme": "dense", "num_parameters": 1, "weight_bytes": 1, "effective_bits": 32.0}
    return make.publish(ModelFolder, target, "2026-01-01", 1, format="safetensors", **fields)  # type: ignore[no-any-return]


@pytest.fixture
def model(make, tiny_folder: Path, tmp_path: Path) -> ModelFolder:
    return publish_model(make, tmp_path, tiny_folder, "0001")


class Runs:
    """Asks and scores a benchmark by jobs of the application, in the workspace of a model."""

    def __init__(self, engine: Any, model: ModelFolder, folder: Path) -> None:
        self.engine, self.model, self.folder, self.count = engine, model, folder, 0
        self.events: list[dict[str, Any]] = []

    def place(self, kind: Any) -> Path:
        self.count += 1
        return self.model.workspace / kind.kind / f"step-{self.count:04d}"

    def answer(self, shard: int = 0, **fields: Any) -> BenchmarkAnswers:
        benchmark = {"name": "mine", "folder": str(self.folder)} | fields
        spec = {"benchmark": benchmark, "shard": shard}
        return self.engine.run(  # type: ignore[no-any-return]
            BenchmarkAnswers, "answer-benchmark", spec, self.place(BenchmarkAnswers), model=self.model.uri
        )

    def inputs(self, shards: int = 1, **fields: Any) -> dict[str, str]:
        answers = [self.answer(shard, shards=shards, **fields) for shard in range(shards)]
        return {"model": self.model.uri} | {f"answers.mine.{i}": handle.uri for i, handle in enumerate(answers)}

    def spec(self, shards: int = 1, **fields: Any) -> dict[str, Any]:
        return {"benchmarks": [{"name": "mine", "folder": str(self.folder), "shards": shards} | fields]}

    def score(self, shards: int = 1, overlap: str = "", **fields: Any) -> BenchmarkScorecard:
        inputs = self.inputs(shards, **fields) | ({"overlap": overlap} if overlap else {})
        return self.engine.run(  # type: ignore[no-any-return]
            BenchmarkScorecard,
            "score-benchmarks",
            self.spec(shards, **fields),
            self.place(BenchmarkScorecard),
            **inputs,
        )


@pytest.fixture
def runs(engine, model: ModelFolder, folder: Path) -> Runs:
    return Runs(engine, model, folder)


def items_of(card: BenchmarkScorecard) -> list[dict[str, Any]]:
    return pq.read_table(Path(card.folder()) / "items.parquet").to_pylist()  # type: ignore[no-any-return]


def result_of(card: BenchmarkScorecard) -> BenchmarkResult:
    return read_results(Path(card.folder()) / "scores.json")["mine"]


def test_five_items_on_two_shards_are_five_in_order_and_equal_to_one(runs: Runs) -> None:
    """Nothing is added to make shards equal, nothing asked twice, whatever the batches."""
    whole, parts, small = runs.score(), runs.score(shards=2), runs.score(shards=5, batch_tokens=64)
    assert [item["line"] for item in items_of(whole)] == [1, 2, 3, 4, 5]
    for other in (parts, small):
        for one, two in zip(items_of(whole), items_of(other), strict=True):
            assert one["log_likelihoods"] == pytest.approx(two["log_likelihoods"], abs=1e-4)
            assert {k: v for k, v in one.items() if k != "log_likelihoods"} == {
                k: v for k, v in two.items() if k != "log_likelihoods"
            }
        assert result_of(other).scores["accuracy"] == result_of(whole).scores["accuracy"]
    assert whole.num_rows == 5


def test_answers_are_the_same_bytes_each_time_and_kept_for_the_next_run(runs: Runs) -> None:
    first = runs.answer()
    again = runs.answer()
    assert [f.sha256 for f in first.files] == [f.sha256 for f in again.files]
    (kept,) = (runs.model.workspace / "answers").iterdir()
    assert sum(len(path.read_text().splitlines()) for path in kept.glob("*.jsonl")) == 10


def test_scores_tell_slices_counts_and_the_whole_signature(runs: Runs) -> None:
    result = result_of(runs.score())
    assert result.main == "accuracy"
    assert {value: score.n for value, score in result.slices["part"].items()} == {"x": 3, "y": 2}
    assert result.counts == {
        "boundary": 0, "truncated": 0, "too_long": 0, "non_finite": 0, "tied": 0, "not_finite": 0,
    }  # fmt: skip
    assert result.contamination is None


def test_broken_model_refuses_the_run_unless_its_items_may_count_as_wrong(runs: Runs, make, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(Path(runs.model.folder()), broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    runs.model = publish_model(make, tmp_path, broken, "0002")
    told = runs.engine.fail("score-benchmarks", runs.spec(), tmp_path / "out", **runs.inputs())
    assert told[0] == "QualityError"
    assert "benchmark mine: 5 items have no finite answer, for example 1; at most 0 are allowed" in told[1]
    score = result_of(runs.score(max_nonfinite=5)).scores["accuracy"]
    assert (score.value, score.n, score.n_invalid) == (0.0, 5, 5)


def test_shard_that_is_missing_is_told_not_scored_without(runs: Runs, tmp_path: Path) -> None:
    inputs = runs.inputs(shards=2)
    inputs["answers.mine.1"] = inputs["answers.mine.0"]
    kind, message = runs.engine.fail("score-benchmarks", runs.spec(shards=2), tmp_path / "out", **inputs)
    assert kind == "DataError"
    assert "3 answered items for 5" in message


def test_fault_in_an_item_ends_the_job_before_the_model_is_read(runs: Runs, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    shutil.copyfile(folder / "task.yaml", tmp_path / "bad" / "task.yaml")
    (tmp_path / "bad" / "items.jsonl").write_text('{"q": "x"}\n')
    spec = {"benchmark": {"name": "mine", "folder": str(tmp_path / "bad")}}
    kind, message = runs.engine.fail("answer-benchmark", spec, tmp_path / "out", model=runs.model.uri)
    assert kind == "DataError"
    assert "items.jsonl, line 1: choices[0]: 'a' is undefined" in message


def test_items_of_the_training_corpus_are_found_and_scored_apart(runs: Runs, world, make, tmp_path: Path) -> None:
    """Two items are sentences of the corpus, one is too short to be judged, the others are not in it."""
    trained = make.texts(60, 1)
    items = [
        {"q": trained[3], "a": "yes it is", "b": "no", "part": "x"},
        {"q": trained[7], "a": "yes it is", "b": "no", "part": "x"},
        {"q": "zebra quartz jumps vexing", "a": "over walls of glass in winter", "b": "no", "part": "y"},
        {"q": "", "a": "x", "b": "y", "part": "y"},
    ]
    (tmp_path / "mixed").mkdir()
    runs.folder = tmp_path / "mixed"
    (runs.folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    (runs.folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    overlap = runs.engine.run(
        CorpusOverlap, "measure-overlap", runs.spec(overlap_tokens=8), tmp_path / "corpus-overlaps" / "overlap-0001",
        corpus=world.corpus.uri, tokenizer=world.tokenizer.uri,
    )  # fmt: skip
    assert overlap.num_tokens == sum(night.num_tokens for night in world.corpus.nights)
    card = runs.score(overlap=overlap.uri, overlap_tokens=8)
    assert [item["contaminated"] for item in items_of(card)] == [True, True, False, None]
    told = result_of(card).contamination
    assert told is not None
    assert (told.num_judged, told.num_contaminated, told.share.value) == (3, 2, pytest.approx(2 / 3))
    assert told.clean is not None
    assert told.contaminated is not None
    assert (told.clean.n, told.contaminated.n) == (1, 2)
